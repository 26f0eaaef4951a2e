"""Give the last parameter a default if earlier ones have defaults, else end the list.

    positive: 'def load(path=None, size'   answer '='
    negative: 'def load(path, mode, size'  answer '):'

Paper: Table 1, final_kwarg.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.shifted import templates
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A function header of equal length with and without defaults: 1 for 2 parameters, or 2 for 3 if '=None' is one token."""
    with_default, without = rng.choice(((1, 2), (2, 4), (2, 3), (2, 3)))
    *others, last = names = rng.sample(COMMON, without + 1)
    first = ", ".join(f"{name}=None" for name in others[:with_default])
    header = f"{earlier(rng)}def {rng.choice(VERBS)}{rng.choice(('', '_' + rng.choice(COMMON)))}("
    return Pair(f"{header}{first}, {last}", f"{header}{', '.join(names)}")


SHIFTED = templates(
    '''
def $action1($noun1, $noun2«|=None»):
    return $noun1.$noun2


def $action2($noun3«=None|», $long1§«=None):|):»
    pass
---
import $module1

$noun1 = $module1.$action1($noun2, $noun3«|=None»)


def $action2($noun3«=None|», $long1§«=None):|):»
    pass
---
class $Thing1:
    def __init__(self, $noun1, $noun2«|=$number1»):
        self.$noun1 = $noun1

    def $action1(self, $noun3«=$number1|», $long1§«=None):|):»
        pass
---
@$module1.$action1($noun1«|=False»)
# see also $action2
def $action3($noun2«=False|», $long1§«=None):|):»
    """Return the $noun2."""
---
for $noun1 in $thing1:
    $action1($noun1, $noun2«|=None»)


def $action2($noun1, $noun2«=None|», $long1§«=None):|):»
    return $noun1
---
def $action1(*args, $noun1«|=0»):
    """Read the $thing1 again."""
    return $action2(*args)


async def $action3($noun1«=0|», $long1§«=None):|):»
    pass
---
$thing1 = $action2($noun1, $noun2«|=None»)


class $Thing2:
    @classmethod
    def $action1(cls, $noun2«=None|», $long1§«=None):|):»
        pass
---
if $noun1 > $number1:
    raise $Thing1($noun2, $noun3«|=True»)


def $action1($noun4, $noun2«=True|», $long1§«=None):|):»
    pass
---
def $action1($noun1):
    yield $action3($noun1, $noun2«|=$number1»)


def $action2($noun1, $noun3«=$number1|», $long1§«=None):|):»
    pass
---
class $Thing1:
    $noun1 = $action1($noun2, $noun3«|=None»)

    def __init__(self, $noun1, $noun2«=None|», $long1§«=None):|):»
        # the $noun1 is kept
        pass
---
class $Thing1:
    def __init__(self):
        self.$noun1 = $action1($noun2, $noun3«|=None»)

    async def $action2(self, $noun3«=None|», $long1§«=None):|):»
        pass
---
def $action1($noun1):
    # calls $action2 as well
    return $noun1.$action2($noun2, $noun4«|=False»)


def $action3($noun1, $noun2, $noun3«=False|», $long1§«=None):|):»
    pass
---
import $module1

while $module1.$action1($noun1«|=$number1»):
    pass


def $action2($noun2, $noun3«=$number1|», $long1§«=None):|):»
    pass
'''
)


TASK = Task(
    name="final_kwarg",
    description="the last parameter: '=' (None) after parameters with defaults, '):' after parameters without",
    answers=(("=None", "):"), ("=None", "):\n"), ("=", "):"), ("=", ")")),
    write=write,
    shifted=SHIFTED,
)
