"""Scenarios: `p2prw run FILE`. A file becomes rows, each row a child process, each child's document a verdict.

text        variables, matrices, names               pure
read        file -> Scenario: the YAML grammar of the other commands, with steps around it
rows        a step and its variables -> one row, every key of it taken or refused
words       one step -> the words of the command line that runs it, and that is printed
expect      "bw >= 90% of link": a closed grammar    pure
needs       skip_unless: what this host must have
child       the one door to subprocesses
runner      rows in order, in parallel, with deadlines; servers end with the scenario
verdict     what a row's document means
document    all rows as one `p2prw/1` document
compare     two documents, refused where they are not alike
schema      the JSON Schema of the format
"""
