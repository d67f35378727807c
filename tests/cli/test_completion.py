"""Shell completion, in a real bash."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cache, stock

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ASK = """
source "$SCRIPT"
COMP_LINE="$1"; COMP_POINT=${#1}
# As readline does it: a colon is a word of its own.
read -ra COMP_WORDS <<< "${1//:/ : }"
if [[ $1 == *" " ]]; then COMP_WORDS+=(""); fi
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
found=$(complete -p mirrorproxy); found=${found##*-F }; ${found%% *}
printf '%s\\n' "${COMPREPLY[@]}"
"""


async def completed(line: str, script: Path, cache: Cache) -> list[str]:
    """What bash would offer at the end of the line."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", _ASK, "bash", line),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SCRIPT": str(script),
            "MIRRORPROXY__CACHE__DIRECTORY": str(cache.proxy.cache),
            "COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        },
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    return out.decode().split()


async def test_bash_completes_commands_flags_and_images(cache: Cache, tmp_path: Path) -> None:
    """Of an image with a colon in it bash wants what follows that."""
    await stock(cache)
    script = tmp_path / "mirrorproxy"
    ran = await cache.run_plain("completion", "bash")
    assert (ran.status, ran.err) == (0, "")
    script.write_text(ran.out)
    assert await completed("mirrorproxy ref", script, cache) == ["refresh"]
    assert "--json" in await completed("mirrorproxy ls --js", script, cache)
    assert await completed("mirrorproxy why ghcr", script, cache) == ["ghcr.io/team/app:1", "ghcr.io/team/app:2"]
    assert await completed("mirrorproxy why docker.io/library/alpine:3", script, cache) == ["3.20"]


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
async def test_other_shells_have_one_too(cache: Cache, shell: str) -> None:
    """There is no such shell here to ask; the commands are in it."""
    ran = await cache.run_plain("completion", shell)
    assert ran.status == 0
    assert "refresh" in ran.out


async def test_quiet_names_are_quick_and_plain(cache: Cache) -> None:
    """One tag a line, for other programs."""
    await stock(cache)
    ran = await cache.call("ls", "--quiet", "ghcr**")
    assert ran.out == "ghcr.io/team/app:1\nghcr.io/team/app:2\n"
