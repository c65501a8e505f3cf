"""python -m experiments.completion bash: print the lines for ~/.bashrc or ~/.zshrc that make Tab complete `metabayes`.

Tab completes commands, choices such as guide=sib, settings such as train.steps=, and paths. The shell calls this
command each time Tab is pressed. To be fast, the command reads source files instead of importing torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyro_metabayes.experiments.completion.candidates import complete

BASH = "complete -o default -o nospace -C 'metabayes completion' metabayes"
LINES = {"bash": BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"}


def main(arguments: Sequence[str] | None = None) -> None:
    if "COMP_LINE" in os.environ:  # the shell passes the command, the current and the previous word
        line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
        print("\n".join(complete(line, sys.argv[2])))
        return
    from pyro_metabayes.experiments.cli.usage import parser_of  # takes one second, too slow for Tab

    parser = parser_of(__doc__)
    parser.add_argument("shell", choices=sorted(LINES), help="the shell to print lines for")
    print(LINES[parser.parse_args(arguments).shell])


if __name__ == "__main__":
    main()
