"""The terminal command: `smalti NAME ...` is `python SCRIPT ...`, the same code and options, from any folder.

It imports nothing before it knows the command, so that `smalti --help` answers at once.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from smalti.common.command_line import begin
from smalti.common.commands import BY_NAME, COMMANDS
from smalti.common.starting import UNHEARD, USER_ERROR, answer_signals, speak_anyhow

OVERVIEW = """\
usage: smalti COMMAND [...]      images into tiles, tiles into images

{commands}

`smalti COMMAND --help` explains all its settings. First steps:

  smalti generate digits                              ten digits by a pipeline that comes with it, in seconds
  smalti run                                          the demo: handwritten digits, minutes on two CPU cores
  smalti configs imagefolder_small --to configs/mine  a config for your own images (imagefolder: with a GPU)
  smalti run configs/mine --images FOLDER --run runs/mine

On several devices: accelerate launch -q --multi_gpu --module smalti.pipeline.terminal COMMAND [...]"""


def main() -> None:
    answer_signals()
    speak_anyhow()
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(UNHEARD)
    sys.exit(status)


def run(words: Sequence[str]) -> int:
    """Run the command that the first word names on the other words. Return the exit status if there is none to run."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        from importlib.metadata import version

        print(f"smalti {version('smalti')}")
        return 0
    if words[0] not in COMMANDS:
        near = meant(words[0])
        hint = f"did you mean {' or '.join(near)}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: there is no command {words[0]}; {hint}", file=sys.stderr)
        return USER_ERROR
    os.environ[BY_NAME] = "1"
    sys.argv = [f"smalti {words[0]}", *words[1:]]
    begin(COMMANDS[words[0]].module)
    script = importlib.import_module(COMMANDS[words[0]].module)
    from smalti.common.launch import run_command

    run_command(script.main)  # which exits
    raise AssertionError


def meant(word: str) -> list[str]:
    """Return the commands that an unknown word may mean: of that script, with that word in the name, or a like name."""
    word = word.lower()
    scripts = [name for name, command in COMMANDS.items() if command.script in (word, f"{word}.py")]
    parts = [name for name in COMMANDS if word.removesuffix(".py") in name.split("-")]
    return scripts or parts or difflib.get_close_matches(word, COMMANDS, 1)


def overview() -> str:
    """Return the text of `smalti --help`."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {command.purpose}" for name, command in COMMANDS.items())
    return OVERVIEW.format(commands="\n".join(lines))


if __name__ == "__main__":
    main()
