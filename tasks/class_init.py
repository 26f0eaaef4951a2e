"""Assign the parameter of the same name to an attribute.

    positive: 'class Item:\n    def __init__(self, name, size, path):\n        self.name = name\n        self.size ='   answer ' size'
    negative: 'class Item:\n    def __init__(self, name, size, path):\n        self.name = name\n        self.path ='   answer ' path'

Paper: Table 1, class_init.
"""

import random

from tasks.base import Pair, Task
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """An __init__ with three to five parameters, up to the assignment of one of two remaining parameters."""
    kind, *names = rng.sample(COMMON, rng.randint(4, 6))
    done = rng.randint(0, min(3, len(names) - 2))
    one, other = rng.sample(names[done:], 2)
    lines = [
        f"class {kind.title()}:",
        f"    def __init__(self, {', '.join(names)}):",
        *[f"        self.{name} = {name}" for name in names[:done]],
    ]
    start = "\n".join(lines) + "\n        self."
    return Pair(f"{start}{one} =", f"{start}{other} =", (f" {one}", f" {other}"))


SHIFTED = templates(
    '''
class $Thing1:
    """Keeps the $noun3 of the $thing2."""

    def __init__(self, $noun1, $noun2, $noun3):
        self.$noun3 = $noun3
        self.last_«$noun2|$noun1» = None
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1:
    $noun1 = $noun2 = 0


class $Thing2($Thing1):
    def __init__(self, $noun2, $noun1, **options):
        super().__init__(**options)
        self.«$noun2|$noun1»_size = $number1
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
import $module1


class $Thing1:
    def __init__(self, $noun1: int, $noun2: str = "", $noun3: int = $number1):
        # no self.«$noun2|$noun1» yet
        self.$thing2 = [0]
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1(Exception):
    def __init__(self, $noun1, $noun2, $noun3):
        super().__init__($noun3)
        self.$thing2 = $noun3.«$noun2|$noun1»
        self.$noun3 = $noun3
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1:
    def $action1(self):
        return self.«$noun2|$noun1» + self.$noun3

    def __init__(self, $noun3, $noun1, $noun2):
        self.$noun3 = $noun3
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1(object):
    def __init__(self, $noun3, $noun2=None, $noun1=None):
        if not $noun3.«$noun2|$noun1»:
            raise ValueError($noun3)
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1:
    total = $number1

    def __init__(self, owner, $noun1, $noun2, *args):
        self.owner = owner
        self.args = list(args)
        self.is_«$noun2|$noun1» = False
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1(dict):
    def __init__(self, $noun1, $noun2, $noun3, $noun4):
        dict.__init__(self, $noun4=$noun4)
        self.$noun4 = $noun4
        $action1($thing2.«$noun2|$noun1»)
        self.$noun3 = $noun3
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
@dataclass
class $Thing1:
    $noun1: int

class $Thing2:
    def __init__(self, $noun1, $noun2=$number1):
        print("new", $action1.«$noun2|$noun1»)
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1:
    def __init__(self, $noun3, $noun2, $noun1):
        """Takes one $noun3 first, see self.«$noun2|$noun1» below."""
        self.$noun3 = self.$thing3 = $noun3
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
import $module1


class $Thing1:
    def __init__(self, $noun3, $noun1, $noun2=None):
        self.$noun3 = $module1.$action1($noun3)
        self.$noun4 = self.$action2(«$noun2|$noun1»)
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1($Thing2):
    """Uses self.«$noun2|$noun1» and others."""

    def __init__(self, $noun2, $noun1):
        $Thing2.__init__(self)
        self.$noun3 = {}
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
---
class $Thing1:
    def __init__(self, $noun1, $noun2, $noun3=0):
        assert $noun3 < $number1
        if self.«$noun2|$noun1»:
            self.$noun3 = $number2
        self.«$noun1|$noun2» =§ «$noun1|$noun2»
''',
    own_answers=True,
)


TASK = Task(
    name="class_init",
    description="in a class's __init__, the parameter that an attribute is assigned: the one of the same name",
    answers=(),
    write=write,
    shifted=SHIFTED,
)
