"""Add to a set or append to a string, by the initial value of the variable.

    positive: 'names = set()\nfor item in data:\n    names'   answer '.' (add)
    negative: 'names = ""\nfor item in data:\n    names'      answer ' +='

Paper: Table 1, set_or_string.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import set_and_string
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A variable with an empty initial value and a loop that extends it, with or without lines between."""
    name, item, source = rng.sample(COMMON, 3)
    return Pair(*set_and_string(rng, name, f"for {item} in {source}:\n    {name}"))


SHIFTED = templates(
    '''
def $action1($noun1):
    """Collect what the $noun1 needs."""
    $noun2 = «set()|""»
    $noun3 = «""|set()»
    for $noun4 in $noun1:
        $noun2§«.add($noun4)| += $noun4»
---
import $module1

$noun1 = «""|set()»
$noun2 = «set()|""»
for $noun3 in $module1.$noun4:
    if $noun3 > $number1:
        $noun2§«.add($noun3)| += $noun3»
---
class $Thing1:
    def $action1(self, $noun1):
        $noun2, $noun3 = «set(), ""|"", set()»
        while self.$noun4 < $number1:
            # one more $noun4
            $noun2§«.add(0)| += $noun1»
---
$noun1 = «""|set()»
with open($noun2) as $noun3:
    $noun4 = «set()|""»
    for $noun5 in $noun3:
        print($noun5)
        $noun4§«.add($noun5)| += $noun5»
---
def $action1(self, $noun1=$number1):
    $noun2 = «set()|""»
    if $noun1 is None:
        $noun3 = «""|set()»
    for $noun4 in self.$noun1:
        $noun2§«.add($noun4)| += $noun4»
---
$noun1, $noun2 = «"", set()|set(), ""»
try:
    for $noun3 in $thing1.$action1():
        $noun2§«.add($noun3)| += $noun3»
except ValueError:
    pass
---
def $action1($noun1):
    $noun2 = «""|set()»
    print($noun2, $number1)
    $noun3 = «set()|""»
    for $noun4, $noun5 in $noun1:
        $noun3§«.add($noun5)| += $noun5»
---
$noun1 = «set()|""»
# not to be mixed up with $noun2
$noun2 = «""|set()»
for $noun3 in range($number1):
    $noun4 = $action1($noun3)
    $noun1§«.add($noun4)| += $noun4»
---
async def $action1($noun1, $noun2):
    $noun3 = «set()|""»
    $noun4 = «""|set()»
    $noun5 = await $action2($noun1)
    if $noun5 != $number1:
        $noun3§«.add($noun5)| += $noun5»
---
def $action1($noun1):
    $noun2 = «""|set()»
    for $noun3 in $noun1:
        $noun4 = «set()|""»
        for $noun5 in $noun3.$noun2:
            $noun4§«.add($noun5)| += $noun5»
---
def $action1($noun1, $noun2):
    $noun3, $noun4 = «"", set()|set(), ""»
    # go through all of $noun1
    while $noun1.$noun2:
        $noun4§«.add($noun1)| += $noun1»
---
class $Thing1:
    def $action1(self):
        $noun1 = «set()|""»
        $noun2 = «""|set()»
        if self.$noun3 == $number1:
            $noun1§«.add(self.$noun3)| += self.$noun3»
---
import $module1

def $action1($noun1):
    $noun2 = «""|set()»
    $noun3 = «set()|""»
    for $noun4 in $module1.$action2($noun1):
        $noun3§«.add($noun4)| += $noun4»
'''
)


TASK = Task(
    name="set_or_string",
    description="extend a variable by its initial value: '.' (add) for set(), ' +=' for an empty string",
    answers=((".add", " +="), (".", " +=")),
    write=write,
    shifted=SHIFTED,
)
