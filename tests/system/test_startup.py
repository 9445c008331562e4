import os
import shlex
import subprocess
import sys

import pytest
from programs import ROOT

# What `python -m` sets while it imports the package.
PROGRAM = "import sys; sys.orig_argv.append('moco_keras.recipes.textures');"
SPEAK = """
import os
from moco_keras.system import startup
with startup.without_greetings():
    for line in {lines}:
        os.write(2, line.encode() + b"\\n")
    {end}
level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "none")
os.write(2, level.encode())
"""
NO_DRIVER = (
    "E0000 00:00:1.5 2 cuda_platform.cc:52] failed call to cuInit: INTERNAL: "
    "CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)"
)
GREETINGS = [
    "WARNING: All log messages before absl::InitializeLog() is called are "
    "written to STDERR",
    "I0000 00:00:1.5 2 port.cc:153] oneDNN custom operations are on.",
    NO_DRIVER,
]
NEWS = [
    "W0000 00:00:1.5 2 some.cc:1] a warning",
    NO_DRIVER.replace("(303)", "(803)"),  # the driver does not fit
    "F0000 00:00:1.5 2 some.cc:1] last words",
]


def stderr_of(code, **env):
    inherited = {
        k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**inherited, **env},
    )
    return result.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "level"), [("pass", ["1"]), ("os.abort()", [])]
)
def test_a_program_shows_news_and_no_greetings(end, level):
    """Up to the last words of a process that is aborted."""
    code = PROGRAM + SPEAK.format(lines=GREETINGS + NEWS, end=end)
    assert stderr_of(code) == NEWS + level


def test_stderr_may_be_closed():
    end = "print('done', flush=True); sys.exit()"
    code = PROGRAM + SPEAK.format(lines=[], end=end)
    closed = f"{sys.executable} -c {shlex.quote(code)} 2>&-"
    done = subprocess.run(
        closed, shell=True, stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    assert done.stdout == b"done\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "env", "level"),
    [("", {}, "none"), (PROGRAM, {"TF_CPP_MIN_LOG_LEVEL": "0"}, "0")],
)
def test_scripts_and_users_who_ask_see_everything(before, env, level):
    code = before + SPEAK.format(lines=GREETINGS + NEWS, end="pass")
    expected = [*GREETINGS, *NEWS, level]
    assert stderr_of(code, **env)[-len(expected) :] == expected
