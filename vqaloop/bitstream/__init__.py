"""Coded bytes: packets, NAL units, OBUs, AVS2, MP4 boxes, codec strings; nothing is decoded."""
