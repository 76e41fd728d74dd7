"""The page for `streamlit run streamlit_app.py`; `avgrad app` serves the same page."""

from avgrad.app.page import show

show()
