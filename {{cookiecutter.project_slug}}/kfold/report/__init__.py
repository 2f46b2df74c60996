"""What people see: tables on the terminal and for spreadsheets, pictures, and the sections of report.html.

For all: scores (as text), tables, spreadsheet, pictures. For report.py, in the order of its page: reading (what lies in
runs/); leaderboard, comparison, public_scores, curves; details (confusion, per_label, residuals, calibration,
breakdown, gallery); choices, second_level, origins. They make parts (drawing: bright and dark), of which page and
vectors make one HTML file. ablation: ablate.py's table; rehearsal_pictures, augment_preview: what rehearsals draw.
"""
