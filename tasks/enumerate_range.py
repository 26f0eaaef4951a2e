"""Loop over enumerate with two variables, over range with one.

    positive: 'for index, item in'   answer ' enumerate'
    negative: 'for index_item in'    answer ' range'

Paper: Table 1, enumerate_range.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import scope
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """The header of a loop with two variables, or with one as long: two words in its name, or three if '_word' is one token."""
    before, indent = scope(rng)
    one, *others = rng.sample(COMMON, rng.choice((2, 3)))
    start = f"{before}{indent}for {one}"
    return Pair(f"{start}, {others[-1]} in", f"{start}_{'_'.join(others)} in")


SHIFTED = templates(
    '''
def $action1($thing1):
    """Print the $noun1 of every $thing1."""
    «|$counter1, »$counter2 = $noun2
    for «$counter1, |»$counter2 in§« enumerate($thing1)| range($number1)»:
        print($counter2)
---
class $Thing1:
    def $action1(self, $noun1):
        self.$noun2 = [] # from the first one on
        self.$noun3 = 0, «|$counter1, »$counter2
        for «$counter1, |»$counter2 in§« enumerate($noun1)| range($number1)»:
            self.$noun2.append($counter2)
---
import $module1

if $module1.$noun1:
    print($noun2, «|$counter1, »$counter2)
    for «$counter1, |»$counter2 in§« enumerate($noun1)| range($number1)»:
        $action1($counter2)
---
def $action1($noun1, $noun2=$number2):
    for $noun3 in range($noun2):
        yield «|$counter1, »$counter2
    for «$counter1, |»$counter2 in§« enumerate($noun1)| range($number1)»:
        yield $number1
---
with open($noun1) as $thing1:
    $noun2 = $thing1.$action1(0, «|$counter1, »$counter2)
    for «$counter1, |»$counter2 in§« enumerate($noun2)| range($number1)»:
        $action1($noun2)
---
for $noun1, $noun2 in enumerate($thing1):
    $action1($noun2)
while $noun3:
    $noun3 = max(0, «|$counter1, »$counter2)
    for «$counter1, |»$counter2 in§« enumerate($thing1)| range($number1)»:
        pass
---
def $action1(self):
    # add $number2 to each $noun1
    $noun2 = [$number2, «|$counter1, »$counter2]
    for «$counter1, |»$counter2 in§« enumerate($noun2)| range($number1)»:
        self.$noun1 += $number2
---
try:
    $noun1 = list(range($number2))
except $Thing1:
    $noun1 = 0, «|$counter1, »$counter2
    for «$counter1, |»$counter2 in§« enumerate($noun1)| range($number1)»:
        $action1($counter2)
---
class $Thing1(list):
    def $action1(self, *args):
        $noun1 = $number1
        print(self, «|$counter1, »$counter2)
        for «$counter1, |»$counter2 in§« enumerate(args)| range($number2)»:
            self.append($noun1)
---
def $action1($noun1):
    $noun2 = []
    for $noun3 in $noun1:
        $noun2 += $action2($noun3, «|$counter1, »$counter2)
    for «$counter1, |»$counter2 in§« enumerate($noun2)| range($number1)»:
        print($counter2)
---
import $module1

$noun2 = $module1.$action1(«|$counter1, »$counter2)
for «$counter1, |»$counter2 in§« enumerate($noun2)| range($number1)»:
    $action2($counter2)
---
class $Thing1:
    def $action1(self, $noun1):
        if $noun1 not in (0, «|$counter1, »$counter2):
            raise ValueError($number2)
        for «$counter1, |»$counter2 in§« enumerate(self.$noun1)| range($number1)»:
            yield $noun1
---
def $action1($noun1):
    """Count the $noun1."""
    $noun2 = ["$thing1", «|$counter1, »$counter2]
    while $noun2:
        for «$counter1, |»$counter2 in§« enumerate($noun1)| range($number1)»:
            $noun2.pop()
'''
)


TASK = Task(
    name="enumerate_range",
    description="the iterable of a loop: ' enumerate' with two variables, ' range' with one",
    answers=((" enumerate", " range"), (" enumer", " range")),
    write=write,
    shifted=SHIFTED,
)
