"""`--install-completion`, loaded when it is asked for."""

from __future__ import annotations

from cyclopts.completion.install import create_install_completion_command

from syncbn_convert.cli.app import app

install = create_install_completion_command(app.install_completion, add_to_startup=False)
