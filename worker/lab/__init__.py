"""A small battery lab to try the system with: its measurements, and a day of its cyclers' updates.

measurements.py   organizations, cells and measurements as they stand before the first update
protocols.py      protocol definitions, made with aurora-unicycler, as objects and as the cyclers' own text
exports.py        what the lab's programs write
updates.py        a few hundred updates with what must become of each
day.py            publishes them, watches what becomes of them, compares
history.py        one measurement's history, in words

Everything follows from a seed: the same seed, the same bytes.
"""
