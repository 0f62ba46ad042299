"""Proof on a laptop: an app as several isolated replicas inside one test process, and what breaks then.

`isolation` makes the replicas, `plugin` is `pytest --replicas N`. Nothing is imported here: pytest loads
the plugin in each of its runs, also in those that never ask for replicas.
"""
