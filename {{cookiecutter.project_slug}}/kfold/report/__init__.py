"""What people see: tables on the terminal and for spreadsheets, pictures."""
