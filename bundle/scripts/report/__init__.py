"""A run's folder as one page to look at: ``report.html``. ``python -m scripts.report FOLDER`` writes it anew."""
