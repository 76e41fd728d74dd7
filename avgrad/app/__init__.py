"""The browser page: `avgrad app` serves it, `page.py` is what streamlit runs. It computes nothing but by Localizer."""
