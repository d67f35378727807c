"""`mirrorproxy completion`: what a shell needs to complete commands, flags and the names of cached images."""

import argparse

_SHELLS = ("bash", "zsh", "fish", "tcsh")

_BASH = """
_mirrorproxy_images() { mirrorproxy ls --quiet "$1**" 2>/dev/null; }
"""
# To bash a colon is a word of its own, and what it completes is what follows one. shtab knows nothing of that.
_BASH_END = """
_mirrorproxy() {
  local line="${COMP_LINE:0:COMP_POINT}" before=""
  local -a words
  read -ra words <<< "$line"
  if [[ $line == *[[:space:]] ]]; then words+=(""); fi
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$((${#words[@]} - 1)) word="${words[-1]}"
  _shtab_mirrorproxy
  if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then before="${word%"${word##*:}"}"; fi
  COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o bashdefault -F _mirrorproxy mirrorproxy
"""
_ZSH = """
_mirrorproxy_images() {
  local -a names
  names=(${(f)"$(mirrorproxy ls --quiet 2>/dev/null)"})
  compadd -a names
}
"""

_PREAMBLES = {"bash": _BASH, "zsh": _ZSH}


def completes_images(argument: argparse.Action) -> None:
    """The argument is the name of a cached image."""
    vars(argument)["complete"] = {"bash": "_mirrorproxy_images", "zsh": "_mirrorproxy_images"}  # what shtab looks for


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser(
        "completion",
        help="print what a shell needs to complete commands and images",
        description="Print what a shell needs: for bash `mirrorproxy completion bash >"
        " ~/.local/share/bash-completion/completions/mirrorproxy`, for zsh into a file `_mirrorproxy` of a folder in"
        " $fpath, for fish into ~/.config/fish/completions/mirrorproxy.fish.",
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    import shtab  # for this command alone

    from mirrorproxy.cli import program

    print(shtab.complete(program(), args.shell, preamble=_PREAMBLES.get(args.shell, "")))
    print(_BASH_END if args.shell == "bash" else "", end="")
    return 0
