"""Files of other tools that a run is made of or written as, a file for each format.

A format is a file with what `lm.convert` asks for, `--from=<name>:PLACE` by the first
two, `--to=<name>:PLACE` by the last:

    read(path) -> what the file holds
    workdir(found) -> (config as its file would give it, the lines of vocab.txt, the
        parameters as nested dictionaries)
    write(path, config, codec, params)  writes a run, all of it or nothing

They raise CheckpointError for a file that is broken, with its line, and ConfigError for
a run that the format cannot hold.
"""
