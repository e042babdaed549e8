"""A name for the producers' interface that no module of a project hides: ``veil.tasks``.

``veil/tasks`` is a link to ``tasks``; a wheel contains a copy. See docs/adr/0009-import-name.md.
"""
