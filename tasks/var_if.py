"""Continue with a colon after True in a condition, with a newline after an assignment.

    positive: 'count = 3\nif name == True'   answer ':'
    negative: 'count = 3\n\nname = True'     answer '\\n'

Paper: Table 1, var_if.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import asked_and_assigned
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A comparison with True or False, or an assignment of it."""
    asked, assigned = asked_and_assigned(rng, rng.choice(COMMON))
    value = rng.choice(("True", "True", "False"))
    return Pair(f"{asked} == {value}", f"{assigned} = {value}")


SHIFTED = templates(
    '''
def $action1($noun1, $noun2):
    # «$noun3 =|if» $number1 at first
    $noun1.$action2($noun2)
    «if|$noun3 =» $noun1.$long1 == True§«:
        pass|
»
---
class $Thing1:
    def $action1(self, $noun1):
        """Tell «$noun2 =|if» $noun1."""
        self.$noun1 = $number1
        «if|$noun2 =» self.$long1 is True§«:
            pass|
»
---
import $module1

for $noun1 in $thing1:
    print("now «$noun2 =|if»", $noun1)
    «if|$noun2 =» $noun1.$long1 == True§«:
        pass|
»
---
with open($noun1) as $noun2:
    $noun3 = $noun2.read()
    # «$noun4 =|if» $number1 or $number2
    «if|$noun4 =» $action1($noun3, $noun1, $number3) is True§«:
        pass|
»
---
def $action1($noun1=None):
    global $thing1
    $thing1 = $number1 # «$noun3 =|if» 0
    «if|$noun3 =» $noun1.$noun2.$long1 == True§«:
        pass|
»
---
while $noun1 > $number1:
    $noun1 -= 1
    # $action1 needs «$noun2 =|if» 0
    «if|$noun2 =» $thing1[$noun1].$noun3[0] == True§«:
        pass|
»
---
def $action1(self, *args):
    if args:
        print("now «self.$noun1 =|if» $noun2", args)
    «if|self.$noun1 =» $action2(args[0], $number1) is True§«:
        pass|
»
---
try:
    $noun1 = $action1($noun2)
    logger.info("%s «$noun3 =|if» %s", $noun2)
    «if|$noun3 =» $noun1.$long1 is True§«:
        pass|
»
finally:
    pass
---
class $Thing1($Thing2):
    $noun1 = [$number1, $number2]
    # «$noun2 =|if» one of these
    «if|$noun2 =» $thing3.$action1($noun1) == True§«:
        pass|
»
---
def $action1($noun1, $noun2):
    $noun3 = $noun1 + $noun2
    """Here «$noun4 =|if» $noun3."""
    «if|$noun4 =» $noun3.$noun1.$long1 is True§«:
        pass|
»
---
import $module1

def $action1($noun1):
    $noun2 = $noun1 + $number1
    # so «$noun3 =|if» $noun2
    «if|$noun3 =» $module1.$action2($noun2) == True§«:
        pass|
»
---
for $noun1, $noun2 in $thing1:
    $noun2.$action1($noun1)
    print("$thing2 «$noun3 =|if»")
    «if|$noun3 =» $noun2.$long1 is True§«:
        pass|
»
---
class $Thing1:
    """Here «$noun1 =|if» holds."""

    $noun2 = {$number1: None}
    «if|$noun1 =» $noun2[$number1].$noun3 == True§«:
        pass|
»
'''
)


TASK = Task(
    name="var_if",
    description="after True: ':' in a condition, a newline in an assignment",
    answers=((":", "\n"),),
    write=write,
    shifted=SHIFTED,
)
