"""Length control: does a guided policy end where it is asked to?"""
