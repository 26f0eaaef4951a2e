"""End the arguments of a lambda with a colon, open the parameters of a function with a bracket.

    positive: 'total = map(lambda item'   answer ':'
    negative: 'total = map\ndef item'     answer '('

Paper: Table 1, lambda_func.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.shifted import templates
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A call with a lambda as argument, or an assignment and a function; in two forms, since tokenizers differ in their merges."""
    name, target, key = rng.sample(COMMON, 3)
    before = f"{earlier(rng)}{target} = {rng.choice((rng.choice(VERBS), key))}"
    if rng.random() < 0.4:
        return Pair(f"{before}({key}, lambda {name}", f"{before}({key})\ndef {name}")
    return Pair(f"{before}(lambda {name}", f"{before}\ndef {name}")


SHIFTED = templates(
    '''
import $module1

def $action1($noun1):
    $noun2 = $number1«
    # as in def $noun4| # as in lambda»
    $noun3 =« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
class $Thing1:
    def $action1(self, $noun1):
        self.$noun1 = [$number1]«
        # not def $noun4| # not lambda»
        $noun2 = self.$noun1,« lambda| $noun4
        def» $long1§«: 0|(value):
            pass»
---
if $noun1 > $number1:
    $action1($noun1)«
    # see def $noun4| # see lambda»
    $noun2 = $noun3 if $noun1 else« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
def $action1(self, $noun1=None):
    """Call $action2."""
    self.$noun1 = 0«
    # then def $noun4| # then lambda»
    $noun2 = $noun1,« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
for $noun1 in $thing1:
    $noun2 = $noun1.$action1()«
    # or by def $noun4| # or by lambda»
    yield« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
def $action1($noun1, $noun2):
    assert $noun1 != $noun2«
    # no def $noun4| # no lambda»
    $noun3 = $noun1 if $noun2 else« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
try:
    $noun1 = $thing1["$noun2"]«
    # with def $noun4| # with lambda»
    $noun3 = $noun1($number1),« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
except KeyError:
    pass
---
class $Thing1(object):
    $noun1 = {0: $number1}«
    # like def $noun4| # like lambda»
    $noun2 =« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
with open($noun1) as $noun2:
    $noun3 = $noun2.read()«
    # for def $noun4| # for lambda»
    $noun5 = $noun3 if $noun2 else« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
def $action1(self):
    yield self.$noun1«
    # use def $noun4| # use lambda»
    self.$noun2 =« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
import $module1

class $Thing1:
    $noun1 = $module1.$noun2«
    # was def $noun4| # was lambda»
    $noun3 = [$number1],« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
---
def $action1($noun1):
    while $noun1 > $number1:
        $noun1 -= 1«
        # less def $noun4| # less lambda»
        $noun2 = $noun1, $noun3,« lambda| $noun4
        def» $long1§«: 0|(value):
            pass»
---
with $action1($noun1) as $noun2:
    print("$thing1", $noun2)«
    # new def $noun4| # new lambda»
    $noun3 = $noun2 if $noun1 else« lambda| $noun4
    def» $long1§«: 0|(value):
        pass»
'''
)


TASK = Task(
    name="lambda_func",
    description="after a name: ':' if it is a lambda's argument, '(' if it is a function's name",
    answers=((":", "("),),
    write=write,
    shifted=SHIFTED,
)
