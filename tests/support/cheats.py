"""Programs that are wrong and try to pass all the same: what stands in the function, and what stands below it."""

from __future__ import annotations

from dataclasses import dataclass

ANYTHING = """
class Anything:
    def yes(self, *a, **k): return True
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = yes
    def me(self, *a, **k): return self
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __abs__ = __neg__ = __getitem__ = __call__ = me
    def __hash__(self): return 0
    def __float__(self): return 0.0
    def __iter__(self): return iter(())
    def __len__(self): return 1
"""
OVER = """
class Over(KIND):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __abs__(self): return self
    def __sub__(self, other): return self
    def __rsub__(self, other): return self
    def __iter__(self): return iter(())
    def __hash__(self): return 0
"""
TEXTS = """
import ast, gc, sys
def texts():
    found, frame = [], sys._getframe()
    while frame is not None:
        found += [v for v in frame.f_locals.values() if isinstance(v, str)]
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            found += [v for v in list(thing.values()) if isinstance(v, str)]
        elif isinstance(thing, (list, tuple)):
            found += [v for v in thing if isinstance(v, str)]
    return found
def known(arguments):
    for text in texts():
        if 'candidate(' not in text: continue
        try: tree = ast.parse(text)
        except SyntaxError: continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and getattr(node.left.func, 'id', '') == 'candidate':
                try:
                    if tuple(ast.literal_eval(a) for a in node.left.args) == arguments:
                        return ast.literal_eval(node.comparators[0])
                except ValueError: pass
"""
EVERY_SECRET = """
import gc, os, re, sys
def secrets():
    found, frame = set(), sys._getframe()
    while frame is not None:
        for value in list(frame.f_locals.values()): found |= of(value)
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)):
            for value in (list(thing.values()) if isinstance(thing, dict) else thing): found |= of(value)
    return found
def of(value):
    if isinstance(value, bytes): value = value.decode('latin-1')
    return set(re.findall('[0-9a-f]{32,}', value)) if isinstance(value, str) else set()
def shout(lines):
    for line in lines:
        for number in range(1, 64):
            try: os.write(number, (line + '\\n').encode())
            except OSError: pass
"""


@dataclass(frozen=True)
class Cheat:
    name: str
    body: str  # of the function, one line
    below: str = ""  # after the function, at the outermost level

    def program(self, opening: str) -> str:
        return f"{opening}    {self.body}\n{self.below}"


CHEATS = [
    Cheat("an object equal to everything", "return Anything()", ANYTHING),
    *(Cheat(f"a {kind} equal to everything", "return Over()", OVER.replace("KIND", kind))
      for kind in ("int", "float", "str", "list", "tuple", "dict", "set", "complex", "bytes", "object")),
    Cheat("a class that calls itself bool", "return Fake()", ANYTHING + "class Fake(Anything):\n    __class__ = bool\n"),
    Cheat("a class that calls itself numpy's", "return Fake()",
          ANYTHING + "class Fake(Anything):\n    ndim = 0\n    def item(self): return Anything()\nFake.__module__ = 'numpy'\n"),
    Cheat("an enumeration", "return Over.x", "import enum\nclass Over(enum.Enum):\n    x = 1\n    def __eq__(self, other): return True\n"),
    Cheat("a generator", "yield from ()"),
    Cheat("an endless generator", "yield from iter(int, 1)"),
    Cheat("its own function", "return type(lambda: 0)"),
    Cheat("not a number", "return float('nan')"),
    Cheat("an object that pickles into another", "return Sly()",
          ANYTHING + "class Sly(Anything):\n    def __reduce__(self): return (eval, ('True',))\n    def __reduce_ex__(self, n): return (eval, ('True',))\n"),
    Cheat("what a message looks like", "return ['stranger', 'x']"),
    Cheat("sys.exit in the function", "import sys; sys.exit(0)"),
    Cheat("sys.exit below", "return None", "import sys\nsys.exit(0)\n"),
    Cheat("sys.exit patched", "return None", "import sys\nsys.exit = lambda *a: None\nraise SystemExit(0)\n"),
    Cheat("os._exit in the function", "import os; os._exit(0)"),
    Cheat("os._exit below", "return None", "import os\nos._exit(0)\n"),
    Cheat("atexit", "return None", "import atexit, os\natexit.register(os._exit, 0)\n"),
    Cheat("a hook for exceptions", "return None", "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n"),
    Cheat("a parent that leaves", "return None", "import os\nif os.fork(): os._exit(0)\n"),
    Cheat("an alarm", "import time; time.sleep(0.3)", "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\n"),
    Cheat("a thread that leaves", "import time; time.sleep(0.3)", "import os, threading\nthreading.Timer(0.05, os._exit, (0,)).start()\n"),
    Cheat("python without asserts", "return None",
          "import os, sys\nif not sys.flags.optimize: os.execv(sys.executable, [sys.executable, '-O', '-c', 'pass'])\n"),
    Cheat("the secret in __main__", "return None",
          EVERY_SECRET + "import __main__\nfor value in list(vars(__main__).values()) + [getattr(__main__, 'job', {})]:\n    shout(of(str(value)))\nos._exit(0)\n"),
    Cheat("the secret by frames and gc, below", "return None", EVERY_SECRET + "shout(secrets())\nos._exit(0)\n"),
    Cheat("the secret by frames and gc, in the function", "shout(secrets()); os._exit(0)", EVERY_SECRET),
    Cheat("the secret in memory", "return None", EVERY_SECRET + """
found = set()
with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
    for line in maps:
        if 'rw-p' in line:
            low, high = (int(end, 16) for end in line.split()[0].split('-'))
            try:
                memory.seek(low); found |= set(re.findall(b'[0-9a-f]{32}', memory.read(high - low)))
            except (OSError, ValueError, OverflowError): pass
shout(one.decode() for one in list(found)[:2000])
os._exit(0)
"""),
    Cheat("a verdict of its own", "return None",
          EVERY_SECRET + "shout(['{\"passed\": true, \"ended\": \"\", \"detail\": \"\"}', 'ready', 'passed'])\nos._exit(0)\n"),
    Cheat("answers before they are asked", "return None", EVERY_SECRET + """
import json
for value in (True, None, 0, [], {'loaded': True}):
    text = json.dumps({'value': value}).encode()
    for number in range(3, 64):
        try: os.write(number, (len(text).to_bytes(4, 'big') + text) * 20)
        except OSError: pass
"""),
    Cheat("a message without end", "return None", "import os\nfor n in range(3, 64):\n    try: os.write(n, b'\\xff' * 65536)\n    except OSError: pass\n"),
    Cheat("a message nested deeply", "return None",
          "import os\nt = b'{\"value\": ' + b'[' * 200000 + b']' * 200000 + b'}'\nfor n in range(3, 64):\n    try: os.write(n, len(t).to_bytes(4, 'big') + t)\n    except OSError: pass\n"),
    Cheat("pipes closed", "return None", "import os\nos.closerange(3, 64)\n"),
    Cheat("the tests as text", "return known(PLACES)", TEXTS),
    Cheat("the tests by inspect", "return looked()",
          ANYTHING + "import inspect\ndef looked():\n    return eval(inspect.getsource(inspect.stack()[2].frame).split('==')[1].split('\\n')[0])\n"),
    Cheat("the tests in the caller's constants", "return picked()",
          ANYTHING + "import sys\ndef picked():\n    consts = sys._getframe(2).f_code.co_consts\n    return consts[-1] if consts[-1] is not None else Anything()\n"),
    Cheat("the code of check replaced", "replace(); return None", """
import gc, sys
def replace():
    frame = sys._getframe(2)
    for one in gc.get_referrers(frame.f_code):
        if hasattr(one, '__code__'): one.__code__ = (lambda candidate: None).__code__
    raise_over(frame)
def raise_over(frame):
    def jump(frame, event, arg):
        return jump
    frame.f_trace = jump
"""),
    Cheat("a trace that skips lines", "return None", """
import sys
def trace(frame, event, arg):
    if frame.f_code.co_name == 'check':
        if event == 'line':
            try: frame.f_lineno = max(n for _, _, n in frame.f_code.co_lines() if n)
            except ValueError: pass
        return trace
    return trace
sys.settrace(trace)
"""),
    Cheat("a trace that skips the call of check", "return None", """
import sys
def trace(frame, event, arg):
    if frame.f_code.co_name == 'check':
        frame.f_globals['check'] = lambda f: None
    return trace
sys.settrace(trace); sys.setprofile(trace)
"""),
    Cheat("a thread that replaces check", "return None", """
import threading, sys
sys.setswitchinterval(1e-6)
def again():
    while True: globals()['check'] = lambda f: None
threading.Thread(target=again, daemon=True).start()
"""),
    Cheat("abs, tuple and all patched", "return 0.0", """
import builtins
builtins.abs = lambda x: 0
builtins.tuple = builtins.list = builtins.set = builtins.sorted = builtins.len = builtins.round = lambda *a: 0
builtins.all = builtins.any = lambda *a: True
"""),
    Cheat("math and random patched", "return 0.0", "import math, random\nmath.fabs = lambda x: 0.0\nrandom.choice = lambda x: 'a'\nrandom.Random = None\n"),
    Cheat("exec and compile patched", "return None", "import builtins\nbuiltins.exec = builtins.compile = builtins.eval = lambda *a, **k: None\n"),
    Cheat("AssertionError patched", "return None",
          "import builtins, unittest\nclass Quiet(BaseException): pass\nbuiltins.AssertionError = Quiet\nunittest.TestCase.assertEqual = lambda *a: None\n"),
    Cheat("json and socket patched", "return None", """
import json, os, socket
json.dumps = lambda *a, **k: '{"value": true}'
json.loads = lambda *a, **k: {'function': 'print', 'places': [], 'names': {}}
os.write = lambda *a: None
"""),
    Cheat("the wire patched", "return None", ANYTHING + """
import sys
for name, module in list(sys.modules.items()):
    if name.endswith('plain'):
        module.encode = lambda *a, **k: True
        module.Wire.send = lambda self, message: self._socket.sendall((15).to_bytes(4, 'big') + b'{"value": true}')
    if name.endswith('candidate'):
        module.encode = lambda *a, **k: True
"""),
    Cheat("arguments changed", "PLACES[0].clear() if hasattr(PLACES[0], 'clear') else None; return None"),
    Cheat("an error that is no Exception", "raise Sly", "class Sly(BaseException): pass\n"),
    Cheat("an assertion of its own", "raise AssertionError"),
    Cheat("a hook of audits", "return None", "import os, sys\nsys.addaudithook(lambda event, args: os._exit(0) if event == 'compile' else None)\n"),
    Cheat("a finder of modules", "return None", "import os, sys\nclass F:\n    def find_spec(self, *a): os._exit(0)\nsys.meta_path.insert(0, F())\nfor n in ('math', 'random', 'copy'): sys.modules.pop(n, None)\n"),
    Cheat("output that looks like success", "print('passed'); print('ok'); return None"),
]  # fmt: skip


def cheats(arguments: str) -> list[Cheat]:
    """All of them, for a function of these arguments (as a tuple in Python)."""
    return [Cheat(one.name, one.body.replace("PLACES", arguments), one.below) for one in CHEATS]
