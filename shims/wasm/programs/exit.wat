;; exit STATUS [SECONDS]: ends with that status, after so many seconds
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  ;; A number such as 0.5, in thousandths.
  (func $thousandths (param $at i32) (result i64)
    (local $char i32) (local $value i64) (local $places i32)
    (block $end
      (loop $next
        (br_if $end (i32.eqz (local.tee $char (i32.load8_u (local.get $at)))))
        (if (i32.eq (local.get $char) (i32.const 46))
          (then (local.set $places (i32.const 1)))
          (else
            (local.set $value
              (i64.add (i64.mul (local.get $value) (i64.const 10))
                       (i64.extend_i32_u (i32.sub (local.get $char) (i32.const 48)))))
            (if (local.get $places)
              (then (local.set $places (i32.add (local.get $places) (i32.const 1)))))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (if (i32.eqz (local.get $places)) (then (local.set $places (i32.const 1))))
    (loop $more
      (if (i32.lt_u (local.get $places) (i32.const 4))
        (then
          (local.set $value (i64.mul (local.get $value) (i64.const 10)))
          (local.set $places (i32.add (local.get $places) (i32.const 1)))
          (br $more))))
    (local.get $value))
  (func (export "_start")
    (drop (call $args_sizes (i32.const 256) (i32.const 260)))
    (drop (call $args (i32.const 512) (i32.const 1024)))
    (if (i32.gt_u (i32.load (i32.const 256)) (i32.const 2))
      (then
        (i32.store (i32.const 16) (i32.const 1)) ;; the monotonic clock
        (i64.store (i32.const 24)
          (i64.mul (call $thousandths (i32.load (i32.const 520))) (i64.const 1_000_000)))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
    (call $exit
      (i32.wrap_i64
        (i64.div_u (call $thousandths (i32.load (i32.const 516))) (i64.const 1000))))))
