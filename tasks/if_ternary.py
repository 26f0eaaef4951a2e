"""End the header of an if statement with a colon, continue a conditional expression with else.

    positive: 'total = count\nif ready'   answer ':'
    negative: 'total = (count if ready'   answer ' else'

Paper: Table 1, if_ternary.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import condition, scope
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """An assignment and an if on the next line or on the same one, where a token before the value makes up for the newline."""
    before, indent = scope(rng)
    name, value = rng.sample(COMMON, 2)
    asked = condition(rng)
    start = f"{before}{indent}{name} = "
    return Pair(f"{start}{value}\n{indent}if {asked}", f"{start}{rng.choice(('(', '[', '-', 'not '))}{value} if {asked}")


SHIFTED = templates(
    '''
def $action1($noun1, $noun2):
    $noun3 = $number1« |
    »# the default
    $noun2 = $noun1«
    | »if $noun1.$long1 > $number2§«:
        pass| else 0»
---
class $Thing1:
    def $action1(self, $noun1):
        """Set the $noun1."""
        self.$noun2 = 0« |
        »# none yet
        self.$noun3 = $noun1«
        | »if self.$long1 == $noun1§«:
            pass| else 0»
---
for $noun1 in $thing1:
    $action1($noun1)« |
    »# may take long
    $noun2 += $noun1«
    | »if not $noun1.$long1§«:
        pass| else 0»
---
import $module1


def $action1($noun1=None):
    global $thing1« |
    »# a cache
    $thing1 = $noun1«
    | »if $noun1.$noun2 and $module1.$long1§«:
        pass| else 0»
---
with open($noun1) as $noun2:
    $noun3 = $noun2.read()« |
    »# all of it
    $noun4 = $noun3«
    | »if $noun3.strip() == $long1§«:
        pass| else 0»
---
while $noun1 < $number1:
    $noun1 += 1« |
    »# the next $noun2
    $noun3 = $noun2«
    | »if $noun1 % $number2 == $noun3.$noun4§«:
        pass| else 0»
---
def $action1(self, $noun1):
    if $noun1:
        return None
    self.$action2()« |
    »# see $action2
    $noun2 = $number1«
    | »if len(self.$long1) < $number2§«:
        pass| else 0»
---
try:
    $noun1 = int($noun2)« |
    »# or fail
    $noun3 = -$noun1«
    | »if $noun2.$noun3 is $long1§«:
        pass| else 0»
except ValueError:
    pass
---
class $Thing1(dict):
    $noun1 = $number1« |
    »# at most
    $noun2 = $noun3«
    | »if $long1 is not None§«:
        pass| else 0»
---
def $action1($noun1, $noun2):
    del $noun1[0]« |
    »# not the $noun1
    print($noun2)«
    | »if $noun1[$number1] in $thing1.$long1§«:
        pass| else 0»
---
import $module1

def $action1($noun1):
    $noun2 = $module1.$noun3« |
    »# to be changed
    $noun4 = -$noun1«
    | »if $noun2.$long1 is None§«:
        pass| else 0»
---
class $Thing1:
    def $action1(self):
        for $noun1 in self.$noun2:
            $noun3 = $number1« |
            »# not $noun4
            yield $noun1«
            | »if $noun1 >= $noun3.$long1§«:
                pass| else 0»
---
if $noun1 in $thing1:
    $noun2 = $action1($noun1)« |
    »# a $thing2
    print($noun2, $number1)
    $noun3 = [$noun2]«
    | »if $noun2.$action2($noun1) != $long1§«:
        pass| else 0»
'''
)


TASK = Task(
    name="if_ternary",
    description="after the condition of an if: ':' in a statement, ' else' in an expression",
    answers=((":", " else"), (":\n", " else")),
    write=write,
    shifted=SHIFTED,
)
