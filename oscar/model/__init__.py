"""Pure data: what the API, the store and the engines speak about. No I/O, nothing imported from other layers."""
