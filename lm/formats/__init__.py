"""File formats of other tools that a run is converted from or to, one module each.

A module has the functions that `lm.convert` calls: `read` and `workdir` for
`--from=<name>:PLACE`, `write` for `--to=<name>:PLACE`:

    read(path) -> what the file holds
    workdir(found) -> (config as its file would give it, the lines of vocab.txt, the
        parameters as nested dictionaries)
    write(path, config, codec, params)  writes a run, all of it or nothing

A module whose files are word vectors has VECTORS = True, and `read` returns
`lm.formats.vectors.Vectors`.

They raise CheckpointError or DataError for a file that is broken, with its line, and
ConfigError for a run that the format cannot hold.
"""
