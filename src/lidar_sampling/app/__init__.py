"""``lidar app``: a page to look at guidance (extra ``[app]``).

The page turns its controls into a Job, which a :class:`lidar_sampling.service.Desk` draws.
"""
