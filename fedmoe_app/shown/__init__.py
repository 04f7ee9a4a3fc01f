"""Text of users and nodes on its way out: one function for each place that it is shown in.

Labels, names of columns, files, runs and schemes, and what a node says of its error are strings of
strangers. Each place reads some of their characters as orders: a terminal escape codes and rich's
``[markup]``, a picture ``$mathematics$``, a spreadsheet ``=formulas``, a log line ends.

| place | function |
| --- | --- |
| terminal | :class:`terminal.Console`, :class:`terminal.Table`, :func:`terminal.say` |
| a command to copy | :func:`terminal.shell_word` |
| picture | :func:`pictures.picture`, :func:`pictures.picture_names`, :func:`pictures.save` |
| CSV, Markdown | :func:`tables.csv_text`, :func:`tables.markdown`, :func:`tables.markdown_cell` |
| log | :class:`logs.LineFormatter`, :func:`logs.log_line`, :func:`logs.output_line` |
| JSON Lines, TOML | :func:`logs.json_line`, :func:`logs.toml_text` |
| HTML page and its data | :func:`pages.html_text`, :func:`pages.html_data` |
| experiment trackers | :func:`tags.tag`, :func:`tags.title` |

All of them rest on :mod:`text`: what acts without being seen is written as its escape (``\\x1b``),
never left out, and ordinary text of any script stays as it is. Nothing else in this app prints,
saves a picture or writes CSV; a test sees to it.
"""
