"""Complete the swap of two variables.

    positive: 'left, right = right,'   answer ' left'
    negative: 'right, left = left,'    answer ' right'

Paper: Table 1, var_swap.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import condition, scope
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A swap up to its last name, sometimes under an if."""
    before, indent = scope(rng)
    if rng.random() < 0.5:
        before, indent = f"{before}{indent}if {condition(rng)}:\n", indent + "    "
    one, other = sorted(rng.sample(COMMON, 2))  # no pair's negative prompt is another's positive one
    start = before + indent
    return Pair(f"{start}{one}, {other} = {other},", f"{start}{other}, {one} = {one},", (f" {one}", f" {other}"))


SHIFTED = templates(
    '''
def $action1($noun1, $noun2):
    """Order the $noun3 by $thing1."""
    $noun3 = «$noun1|$noun2»
    if $noun3 > $number1:
        «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
import $module1

$noun1, $noun2 = $number1, $number2
$noun3 = «$noun1|$noun2»
while $noun1 < $noun2:
    «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
class $Thing1:
    def $action1(self, $noun1, $noun2, $noun3):
        # rotate all three
        self.$noun3 = «$noun1|$noun2»
        «$noun1, $noun2|$noun2, $noun1», $noun3 = «$noun2|$noun1», $noun3,§ «$noun1|$noun2»
---
for $noun1, $noun2 in zip($thing1, $thing2):
    $noun3 = max(0, «$noun1|$noun2»)
    if $noun3 == $number1:
        «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
def $action1($noun1, $noun2=$number1):
    $noun3, $noun4 = $noun2, $noun1
    print($noun3, «$noun1|$noun2»)
    «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
with open($noun3) as $noun4:
    $noun1 = $noun4.read()
    $noun2 = $noun4.$action1() or «$noun1|$noun2»
    $noun3, «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1», $noun3,§ «$noun1|$noun2»
---
def $action1(self, $noun1):
    $noun2 = self.$noun3
    if not «$noun1|$noun2»:
        return $number1
    «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
try:
    $noun1, $noun2, $noun3 = $action1($thing1)
    $noun3 += «$noun1|$noun2»
    «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
finally:
    pass
---
def $action1($noun1, $noun2, $noun3):
    # $noun3 comes last
    assert $noun3 != «$noun1|$noun2»
    «$noun1, $noun2|$noun2, $noun1», $noun3 = $noun3, «$noun2|$noun1»,§ «$noun1|$noun2»
---
if $noun1 < $noun2:
    $noun3, $noun4 = $noun4, $noun3
    print("larger", «$noun1|$noun2»)
    «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
def $action1($noun1, $noun2):
    while $noun3 > «$noun1|$noun2»:
        $noun3 -= $number1
        «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
class $Thing1:
    def $action1(self):
        $noun1, $noun2 = self.$noun3
        self.$noun4 = [«$noun1|$noun2»]
        «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
---
import $module1

for $noun3 in $module1.$noun4:
    $noun1 = $noun3 % $number1
    $noun2 = «$noun1|$noun2» + 1
    «$noun1, $noun2|$noun2, $noun1» = «$noun2|$noun1»,§ «$noun1|$noun2»
''',
    own_answers=True,
)


TASK = Task(
    name="var_swap",
    description="the last name of a swap: x in 'x, y = y, x'",
    answers=(),
    write=write,
    shifted=SHIFTED,
)
