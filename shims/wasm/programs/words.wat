;; words ARGUMENT...: writes its arguments, each with a comma after it, and the variable A, as one
;; line
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get"
    (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; Writes a text, with a character where its end was.
  (func $put (param $text i32) (param $char i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $found
      (loop $next
        (br_if $found (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $next)))
    (i32.store8 (local.get $end) (local.get $char))
    (i32.store (i32.const 16) (local.get $text))
    (i32.store (i32.const 20)
      (i32.add (i32.sub (local.get $end) (local.get $text)) (i32.const 1)))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))))
  (func (export "_start")
    (local $number i32) (local $text i32)
    (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 8192)))
    (local.set $number (i32.const 1))
    (block $end
      (loop $next
        (br_if $end (i32.ge_u (local.get $number) (i32.load (i32.const 0))))
        (call $put
          (i32.load (i32.add (i32.const 64) (i32.mul (local.get $number) (i32.const 4))))
          (i32.const 44))
        (local.set $number (i32.add (local.get $number) (i32.const 1)))
        (br $next)))
    (drop (call $environ_sizes (i32.const 0) (i32.const 4)))
    (drop (call $environ (i32.const 64) (i32.const 8192)))
    (local.set $number (i32.const 0))
    (block $end
      (loop $next
        (br_if $end (i32.ge_u (local.get $number) (i32.load (i32.const 0))))
        (local.set $text
          (i32.load (i32.add (i32.const 64) (i32.mul (local.get $number) (i32.const 4)))))
        (if (i32.eq (i32.load16_u (local.get $text)) (i32.const 0x3d41)) ;; A=
          (then (call $put (i32.add (local.get $text) (i32.const 2)) (i32.const 10))))
        (local.set $number (i32.add (local.get $number) (i32.const 1)))
        (br $next)))))
