"""``python -m fastrnn``: the command line."""

from fastrnn.cli.main import app

app(prog_name="python -m fastrnn")
