"""Continue a loop header by the kind of loop.

    positive: 'for item'     answer ' in'
    negative: 'while item'   answer ':'

Paper: Table 1, for_while.
"""

import random

from tasks.base import Pair, Task
from tasks.shifted import templates
from tasks.words import NOUNS, VERBS


def write(rng: random.Random) -> Pair:
    """A loop header up to its variable, at top level or inside a function, sometimes after an earlier line."""
    indent, before = "", ""
    if rng.random() < 0.5:
        indent = "    "
        before = f"def {rng.choice(VERBS)}({rng.choice(NOUNS)}):\n"
    if rng.random() < 0.5:
        before += f"{indent}{rng.choice(NOUNS)} = {rng.choice((str(rng.randrange(10)), '[]', rng.choice(NOUNS)))}\n"
    name = rng.choice(NOUNS)
    return Pair(f"{before}{indent}for {name}", f"{before}{indent}while {name}")


SHIFTED = templates(
    '''
def $action1($noun1, $noun2):
    """Go through the $thing1."""
    «while|for» $noun3 in $noun1:
        $noun2.append($noun3)
    «for|while» $long1§« in $noun2|»:
        print($noun2)
---
import $module1

$noun1 = [$number1, $number2]
«while|for» $noun2 in $noun1:
    $action1($noun2)
    $noun1.pop()
«for|while» $long1§« in $noun1|»:
    $action2()
---
class $Thing1:
    def $action1(self, $noun1):
        # «while|for» the first $noun1
        self.$noun2 = $number1
        if self.$noun1 is None:
            return $noun1
        «for|while» $long1§« in $noun1|»:
            self.$action2()
---
with open($noun1) as $noun2:
    $noun3 = $noun2.read()
    «while|for» $noun1 in $noun3:
        print($noun3)
    $noun3 = None
    «for|while» $long1§« in $noun2|»:
        $action1()
---
def $action1($noun1=$number1):
    $noun2 = set()
    logger.info("not here «while|for» the $noun1 is open")
    «for|while» $long1§« in $noun2|»:
        $noun2.add($noun1)
---
try:
    «while|for» $noun1 in $thing1:
        $action1($noun1)
except ValueError:
    $noun2 = $number1
    «for|while» $long1§« in $noun2|»:
        $noun2 -= 1
---
def $action1($noun1):
    """Wait «while|for» one $noun1."""
    $noun2 = $action2($noun1)
    if not $noun2:
        raise KeyError($noun1)
    «for|while» $long1§« in $noun2|»:
        yield $noun2
---
for $noun1 in range($number1):
    «while|for» $noun2 in $noun3:
        $noun3.remove($noun2)
        break
    «for|while» $long1§« in $noun3|»:
        $action1($noun1)
---
async def $action1(self):
    if self.$noun1:
        «while|for» $noun2 in self.$noun1:
            await self.$action2($noun2)
    «for|while» $long1§« in self.$noun1|»:
        pass
---
while True:
    $noun1 = input("$thing1: ")
    for $noun2 in $noun1:
        «while|for» $noun3 in $noun2:
            $action1($noun3)
    «for|while» $long1§« in $noun1|»:
        break
---
def $action1($noun1):
    """Read $noun1 «while|for» it is new."""
    with $noun1.$action2() as $noun2:
        «for|while» $long1§« in $noun2|»:
            print($noun2)
---
class $Thing1($Thing2):
    def $action1(self):
        «while|for» $noun1 in self.$noun2:
            return $number1
        # again
        «for|while» $long1§« in self.$noun2|»:
            self.$action2()
---
$noun1 = "go on «while|for» $thing1"
if $noun1 in $thing2:
    $noun2 = $noun1.$action1($number1)
«for|while» $long1§« in $noun2|»:
    $action2($noun2)
'''
)


TASK = Task(
    name="for_while",
    description="continue a loop header by the kind of loop: ' in' after for, ':' after while",
    answers=((" in", ":"), (" in", ":\n")),
    write=write,
    shifted=SHIFTED,
)
