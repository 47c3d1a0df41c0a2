"""An Excel workbook given back as it was, with columns and a summary sheet added."""
