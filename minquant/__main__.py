"""``python -m minquant``: the command line, also as torchrun starts it."""

from minquant.cli import main

raise SystemExit(main())
