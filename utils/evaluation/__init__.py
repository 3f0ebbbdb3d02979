"""Scores of predictions against the truth, their statistics and tables; nothing is drawn here.

- ``confusion``, ``voxels``, ``surfaces``, ``columns``: what one volume scores, by voxels, by
  surfaces and by columns; ``keypoints``: column centres of 2D images.
- ``conditions``: what made a volume easy or hard.
- ``scoring``: all of these for one volume, a row of the table.
- ``statistics``: means over volumes with their intervals, paired differences, correlations.
- ``tables``: tables and summaries as files; ``report``: the lines that are printed.
- ``prediction_files``: masks and probabilities that were written before; ``comparison``: scores
  that were, and whether two sets of them are of the same volumes.
"""
