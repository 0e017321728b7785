"""Arrays and frames in, Plotly or Altair figures out. No files, no streamlit, no torch.

Every colour has a contrast of at least 3 : 1 against both page backgrounds, and nothing is told by colour
alone: models differ in marker and name as well.
"""
