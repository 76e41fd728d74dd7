"""The page for who starts streamlit by hand: `streamlit run streamlit_app.py`; `avgrad app` does the same."""

from avgrad.app.page import show

show()
