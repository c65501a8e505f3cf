"""python -m experiments.completion bash: the lines of ~/.bashrc or ~/.zshrc that make Tab complete `metabayes`.

Tab completes commands, choices such as guide=sib, settings such as train.steps=, and paths. The shell calls this
command at every Tab, so it reads the sources of the settings and imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyro_metabayes.experiments.completion.candidates import complete

BASH = "complete -o default -o nospace -C 'metabayes completion' metabayes"
LINES = {"bash": BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"}


def main(arguments: Sequence[str] | None = None) -> None:
    if "COMP_LINE" in os.environ:  # called by the shell with the command, the word and the word before it
        line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
        print("\n".join(complete(line, sys.argv[2])))
        return
    from pyro_metabayes.experiments.cli.usage import parser_of  # a second: not at every Tab

    parser = parser_of(__doc__)
    parser.add_argument("shell", choices=sorted(LINES), help="the shell")
    print(LINES[parser.parse_args(arguments).shell])


if __name__ == "__main__":
    main()
