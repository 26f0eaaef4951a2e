"""Continue with a colon after True in a while loop, with a newline after return.

    positive: 'def load(path):\n    while True'    answer ':'
    negative: 'def load(path):\n    return True'   answer '\\n'

Paper: Table 1, while_return_true.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import condition, earlier
from tasks.shifted import templates
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A function, sometimes with an if in it, up to True."""
    names = ", ".join(rng.sample(COMMON, rng.randint(1, 3)))
    before, indent = f"def {rng.choice(VERBS)}({names}):\n{earlier(rng, '    ')}", "    "
    if rng.random() < 0.4:
        before, indent = f"{before}    if {condition(rng)}:\n", indent + "    "
    return Pair(f"{before}{indent}while True", f"{before}{indent}return True")


SHIFTED = templates(
    '''
def $action1($noun1):
    # «return|while» the $noun1 is open
    $noun2 = $number1
    $noun1.$action2($noun2)
    «while|return» $noun1.$long1 is True§«:
        pass|
»
---
class $Thing1:
    def $action1(self, $noun1):
        """Check «return|while» the $noun1 is there."""
        self.$noun2 -= $number1
        «while|return» self.$long1 == True§«:
            pass|
»
---
import $module1

def $action1($noun1, $noun2):
    if $noun1:
        raise ValueError("no «return|while» of $noun2")
    «while|return» $module1.$long1($noun2) is True§«:
        pass|
»
---
async def $action1(self, $noun1):
    await self.$action2($noun1)
    print("will «return|while» $noun1", $number1)
    «while|return» $noun1.$noun2.$long1 is True§«:
        pass|
»
---
def $action1($noun1, $noun2=$number1):
    for $noun3 in $noun1:
        $action2($noun3) # «return|while» new
    «while|return» $noun2[$noun1].$noun3($number2) == True§«:
        pass|
»
---
def $action1($noun1):
    with $noun1.$noun2:
        # see the «return|while» above
        $noun3 = []
    «while|return» $action2($noun3, $noun1, $number1) is True§«:
        pass|
»
---
class $Thing1($Thing2):
    def $action1(self):
        if not super().$action1():
            logger.debug("no «return|while» %s", self)
        «while|return» self.$noun1.$long1 == True§«:
            pass|
»
---
def $action1(*args):
    try:
        $noun1 = args[$number1]
    finally:
        """No «return|while» $noun2."""
    «while|return» $noun1.$long1 is True§«:
        pass|
»
---
def $action1($noun1):
    global $thing1
    $thing1 = $noun1.$noun2 or "a «return|while» $noun3"
    «while|return» $thing1.$action2(0, $noun1) is True§«:
        pass|
»
---
def $action1(self, $noun1, $noun2):
    # «return|while» at $number1
    while $noun1 < $noun2:
        $noun1 += 1
    «while|return» self.$long1[$noun1] == True§«:
        pass|
»
---
def $action1($noun1, $noun2):
    global $thing1 # «return|while» it is new
    $thing1 = $noun2[$number1]
    «while|return» $noun1.$action2($thing1) is True§«:
        pass|
»
---
import $module1

def $action1(self):
    """Do not «return|while» $noun1."""
    $noun2 = $module1.$noun3
    «while|return» $noun2.$long1 == True§«:
        pass|
»
---
class $Thing1:
    def $action1(self, $noun1):
        for $noun2 in $noun1:
            print("«return|while» $noun3", $noun2)
        «while|return» $noun1[$number1].$long1 is True§«:
            pass|
»
'''
)


TASK = Task(
    name="while_return_true",
    description="after True: ':' in a while header, a newline in a return",
    answers=((":", "\n"),),
    write=write,
    shifted=SHIFTED,
)
