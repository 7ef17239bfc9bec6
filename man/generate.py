"""The manual page, from the parser of the command line: ``make man``."""

from __future__ import annotations

import os
import sys
from datetime import date
from pathlib import Path

os.environ["COLUMNS"] = "80"  # what usage is wrapped at

from argparse_manpage.manpage import Manpage

from taskd.cli.main import command_line


def page() -> str:
    made = Manpage(command_line())
    made.description = "containerd's task service, and its command line"
    made.manual = "taskd"
    made.date = "DATE"
    # The library escapes the dashes of a date, so that readers do not know it for one.
    return str(made).replace("DATE", date.today().isoformat(), 1)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
