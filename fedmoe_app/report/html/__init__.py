"""``report.html``: what a run or a comparison did, in one file that needs no network.

Content is put together in Python (:mod:`run_page`, :mod:`charts`, :mod:`cubes`), laid out by the
templates, and drawn by the page's own script. The sources of the page (``template``, ``style``,
``script_*``) are Python modules: a Flower app bundle carries no HTML, CSS or JavaScript files, and
the server of a run writes the page out of the bundle.
"""
