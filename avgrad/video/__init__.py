"""Videos: where is what is heard, said or written, moment by moment?"""
