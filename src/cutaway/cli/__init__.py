"""The `cutaway` command: one file per group of subcommands, each a thin shell around the library."""
