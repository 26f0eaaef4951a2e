"""Compare in a condition, assign in a statement.

    positive: 'count = 3\nif name'      answer ' =='
    negative: 'count = 3\n\nname'       answer ' ='

Paper: Table 1, if_equals.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import asked_and_assigned
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A name in a condition, or as the target of an assignment."""
    return Pair(*asked_and_assigned(rng, rng.choice(COMMON)))


SHIFTED = templates(
    '''
def $action1(self, $noun1):
    """Find the $noun1 of the $thing1."""
    if not $noun1:
        «|return »$noun3()
    «return |»self.$noun2§« ==| =» $number1
---
class $Thing1:
    def $action1(self, $noun1, $noun2):
        # only«| if» new ones, see $action2
        self.$noun2 = $noun1
       « if|» self.$long1§« == 0: pass| = 0»
---
import $module1


def $action1($noun1):
    $noun2 = $number1
    # done«| while» reading
   « while|» $noun1.$long1§« == 0: pass| = 0»
---
def $action1($noun1, $noun2=None):
    for $noun3 in $noun1:
        «|assert »$action2($noun3)
    «assert |»$noun2.$long1§« ==| =» $number1
---
for $noun1 in $thing1:
    if $noun1.$noun2 is None:
        # not the last one«| if» sorted
        $action1($noun1)
   « if|» $thing2[$noun1].$noun3§« == 0: pass| = 0»
---
def $action1($noun1):
    for $noun3 in $noun1:
        print("$thing1 not«| while» open")
   « while|» $noun1.$long1§« == $number1: pass| = $number1»
---
class $Thing1:
    def $action1(self):
        if self.$noun1:
            «|return »super().$action1()
        «return |»self.$long1[0]§« ==| =» $number2
---
with open($noun1) as $noun2:
    print("wait«| if» the $thing1 is old")
    $noun3 = $noun2.read()
   « if|» $noun3.$long1§« == 0: pass| = 0»
---
def $action1($noun1, $noun2):
    $noun2 = [$noun3 for $noun3 in $noun1]
    """Give up«| if» empty."""
   « if|» $noun2[$noun1.$long1]§« == 0: pass| = 0»
---
def $action1(self, $noun1):
    try:
        «|assert »self.$action2($noun1)
    except ValueError:
        pass
    «assert |»self.$long1§« ==| =» $number1
---
class $Thing1:
    def $action1(self, $noun1):
        «|assert »self.$action2($noun1)
        # the $thing2 first
        «assert |»$noun1.$long1§« ==| =» $number1
---
import $module1

for $noun1 in $module1.$noun2:
    log("$thing1«| if» any")
    $noun3 = $action1($noun1)
   « if|» $noun3.$noun4.$long1§« == $number1: pass| = $number1»
---
def $action1($noun1, $noun2):
    """Compare $noun1«| while» open."""
    $noun2 += [0]
   « while|» $noun1[$number1].$long1§« == 0: pass| = 0»
'''
)


TASK = Task(
    name="if_equals",
    description="after a name: ' ==' in a condition, ' =' in a statement",
    answers=((" ==", " ="),),
    write=write,
    shifted=SHIFTED,
)
