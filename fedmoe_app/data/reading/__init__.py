"""Read data files into columns of text, exactly as they stand in the file.

No type is guessed: ``001``, ``2024-01-05`` and ``true`` come out as they were written, in every
format. What a column means is decided above (:mod:`fedmoe_app.data.columns`).
"""
