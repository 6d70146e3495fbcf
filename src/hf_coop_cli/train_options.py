"""The names of the options of `hf-coop train`, as its help lists them, for shells to complete.

The parser that knows them imports torch, which takes longer than anybody waits for a completion.
"""

TRAIN_OPTIONS = """
--help --config --seeds --model_name_or_path --model_revision --method --n_ctx --ctx_init --max_prompts_per_chunk
--class_token_position --class_specific_context --template --kgcoop_weight --prograd_lambda --prograd_temperature
--train_dir --validation_dir --test_dir --dataset_name --dataset_config_name --benchmark --data_dir --train_split
--validation_split --test_split --image_column_name --label_column_name --classnames_file --skip_broken_images
--test_size --cv_folds --num_shots --subsample_classes --zero_shot_template --output_dir --overwrite_output_dir
--recipe --num_train_epochs --learning_rate --warmup_epochs --warmup_learning_rate --optim --max_text_passes
--momentum --weight_decay --label_smoothing_factor --anchor_weight --anchor_template --adam_beta1 --adam_beta2
--adam_epsilon --per_device_train_batch_size --per_device_eval_batch_size --gradient_accumulation_steps
--dataloader_drop_last --no_dataloader_drop_last --dataloader_num_workers --feature_dtype --image_views
--learn_temperature --seed --bf16 --fp16 --use_cpu --save_strategy --save_steps --save_total_limit --eval_strategy
--load_best_model_at_end --early_stopping_patience --resume_from_checkpoint --report_to --disable_tqdm --push_to_hub
--hub_model_id --hub_token --hub_private_repo
""".split()  # noqa: SIM905 - as a list it would be a line each
