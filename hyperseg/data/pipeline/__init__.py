"""Input pipeline of training: from files or a cache to batches on the device.

Sample k depends on the seed and k alone (`samples.py`), so a restart, another number of workers or of processes changes
no sample. Workers change the geometry of uint8 arrays (`geometry.py`); the device does the rest (`photometry.py`:
colours, normalisation, layout). `recipes.py` has the settings of the published networks, `loader.py` the loaders,
`cache.py` decoded copies of data sets, `official.py` the original transforms, for reproduction.
"""
