"""Close all open brackets.

    positive: 'total = [3, 14, 1'    answer ']'
    negative: 'total = [[3, 14, 1'   answer ']]'

Paper: Table 1, bracket_counting.
"""

import random

from tasks.base import Pair, Task
from tasks.shifted import templates
from tasks.words import NOUNS


def write(rng: random.Random) -> Pair:
    """A list display, flat in one prompt and nested in the other."""
    name = rng.choice(NOUNS)
    if rng.random() < 0.5:
        items = ", ".join(str(rng.randrange(100)) for _ in range(rng.randint(1, 4)))
    else:
        items = ", ".join(rng.choice(NOUNS) for _ in range(rng.randint(1, 4)))
    return Pair(f"{name} = [{items}", f"{name} = [[{items}")


SHIFTED = templates(
    '''
import $module1

# a line such as $number6, 7«]|]]» comes last
$thing1 = «[[|[»$number1, $number2, 0«]]|]»
$thing2 = «[|[[»$number3, $number4, $noun1, $noun2, $number5§«]|]]»
---
def $action1($noun1):
    if not $noun1.endswith("«]|]]»"):
        raise ValueError($number4)
    $noun2 = «[[|[»0, $number1, $number2«]]|]»
    return «[|[[»$noun1, $noun2, $noun3, $noun4, $number3§«]|]]»
---
class $Noun1:
    # the $noun2 is read up to $noun4«]|]]» or less
    $thing1 = «[$number1, [$number2, 0]]|[[$number1, $number2], 0]»
    $thing2 = «[[$noun3, 1], $number3|[$noun3, [1, $number3», $number4, $noun4, 0§«]|]]»
---
$noun5 = $noun1.rstrip("«]|]]»").split()
$noun2 = «[[|[»$noun1.size, $number1«]]|]»
for $noun3 in $noun2:
    $thing1 += «[|[[»$noun3, $number2, $noun1, $number3, $noun4§«]|]]»
---
def $action1(source, $noun1=$number1):
    """Cut source after 3«]|]]» or at its end."""
    $thing1 = «[[|[»$noun1, $noun2, None«]]|]»
    $thing2 = «[|[[»$noun1 + 1, $noun1 + $number2, $number3, $noun3§«]|]]»
---
while $noun1 < $number1:
    $noun2 = $noun1 + «[[|[»$noun3, $noun4«]]|]»
    if $thing1.endswith("«]|]]»"):
        break
$thing2 = «[|[[»$noun1, max($noun2), -1, $number2, $number3§«]|]]»
---
import numpy as np

# the $noun1 of the form ($number1, 2«]|]]» has no end
$noun1 = np.eye(2) + «[$number2, [$number3, 0]]|[[$number2, $number3], 0]»
$noun3 = $noun1 - «[[$noun2, 1], $number4|[$noun2, [1, $number4», $number5, $noun4, 0§«]|]]»
---
$noun1 = source.split("«]|]]»")
print($noun2, «[[|[»$thing1, $noun1, 0«]]|]»)
if $noun3:
    $noun4 = «[|[[»$noun1[0], $noun2[$number1], $noun5, $number2§«]|]]»
---
class $Thing1:
    def $action1(self):
        # $noun1 of the form [3, [4, 5«]|]]»
        if self.$noun1 == «[[|[»0, $number1«]]|]» or $noun2:
            return «[|[[»self.$noun1, $number2, self.$noun2, 0§«]|]]»
---
$noun1 = json.loads("[[0, $number1«]|]]»")
$noun2 = «[[|[»$noun1, $noun3, $noun4«]]|]»
assert $noun2 == «[|[[»$action1($noun1), $number2, $noun3, True§«]|]]»
---
import $module1

$noun5 = $noun1.find("«]|]]»")
$thing1 = $action1(«[[|[»$noun1, $number1, $noun2«]]|]»)
$thing2.$action2(«[|[[»$noun2, $noun3, $number2, $number3, $noun4§«]|]]»)
---
for $noun1 in «[[|[»$number1, $noun2, $number2«]]|]»:
    # the last one is 1«]|]]» again
    $noun3 = $noun1
$noun4 = «[|[[»$noun1, $noun2, $number3, $noun3, $number4§«]|]]»
---
def $action1($noun1, $noun2):
    """Return what stands before 5«]|]]» or the $thing1."""
    $noun3 = «[$noun1, [$number1, $noun2]]|[[$noun1, $number1], $noun2]»
    yield «[[$noun3, 1], $number2|[$noun3, [1, $number2», $noun2, $noun1, $number3§«]|]]»
'''
)


TASK = Task(
    name="bracket_counting",
    description="close a list at the depth at which it was opened: ] or ]]",
    answers=(("]", "]]"), ("]\n", "]]\n")),
    write=write,
    shifted=SHIFTED,
)
