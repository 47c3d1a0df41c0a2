"""Starting up stays fast: nothing heavy is imported before it is needed."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "sklearn", "scipy", "polars")

# `import MODULE`, or with arguments `python -m MODULE ARGUMENTS`; the last line lists what was loaded.
PROBE = """
import json, runpy, sys
module, *arguments = sys.argv[1:]
try:
    if arguments:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        __import__(module)
except SystemExit as stop:
    assert not stop.code, stop.code
print()
print(json.dumps(sorted(sys.modules)))
"""


def loaded(*words):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    *output, modules = done.stdout.splitlines()
    return "\n".join(output), set(json.loads(modules))


def test_import_loads_nothing_heavy():
    _, modules = loaded("snugtune")
    assert "snugtune" in modules
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(words):
    output, modules = loaded("snugtune", *words)
    assert "Usage" in output
    assert "snugtune.cli" in modules
    assert modules.isdisjoint(HEAVY)


def test_the_supervisor_loads_nothing_heavy():
    _, modules = loaded("snugtune.supervise")
    assert modules.isdisjoint(HEAVY)


def test_fit_is_the_function_whoever_imported_the_module_of_that_name():
    code = "import snugtune, snugtune.fit; from snugtune import fit; assert callable(fit)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_probe_sees_what_is_imported():
    """Guards the tests above: a heavy module that is loaded is found."""
    _, modules = loaded("snugtune.data.columns")
    assert "polars" in modules
