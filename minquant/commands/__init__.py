"""The subcommands of ``minquant``, one a file: ``add_parser(subparsers)``, ``run(args) -> exit status``."""
