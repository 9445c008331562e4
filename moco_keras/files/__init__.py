"""Image files: their kinds, their pixels, and folders of them."""
