"""Does a trained guide know how often it is right?"""
