"""What the keys of TRL, axolotl and LLaMA-Factory are called in a job, or what to do instead.

The answers of NAMES are for keys, paths, patterns of keys, and `key=value`. An answer without a
space is the key of a job. `STAGE` stands for the stages that have the key.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from pipeline.job.every_field import find_field
from pipeline.job.stages import TRAINING

NAMES = {
    # ------------------------------------------------------------ the model
    "model.from": "base_model model_name_or_path model_id pretrained_model_name_or_path",
    "write the revision after the name: `model: {from: user/name@revision}`": (
        "model_revision revision_of_model base_model_revision"
    ),
    "`model.from` brings its own tokenizer. Leave the key out": (
        "tokenizer_* init_special_tokens use_fast_tokenizer processing_class processor"
    ),
    "the model keeps its vocabulary and its special tokens. Leave the key out": (
        "special_tokens tokens add_tokens add_special_tokens additional_special_tokens "
        "added_tokens_overrides bos_token eos_token pad_token unk_token pad_token_id eot_tokens "
        "resize_token_embeddings_to_32x resize_vocab shrink_embeddings mean_resizing_embeddings "
        "new_special_tokens_config split_special_tokens fix_untrained_tokens vocab_expand_*"
    ),
    "the repository of the model says this. Leave the key out": (
        "model_type type_of_model model_class model_config model_init_kwargs model_kwargs "
        "base_model_config base_model_ignore_patterns cls_model_config is_*_derived_model "
        "overrides_of_model_* low_cpu_mem_usage device_map init_config trainer_cls use_cache"
    ),
    "Pion runs no code that a model brings. Leave the key out": "trust_remote_code",
    "Pion trains no quantized weights. `lora: {base_dtype: bfloat16}` halves the frozen weights": (
        "load_in_4bit load_in_8bit quantization_bit quantization_* quant_config bnb_* gptq* "
        "use_bnb_nested_quant double_quantization model_quantization_config* quantize_moe_experts "
        "adapter=qlora use_onebitllms nvfp4_merge_aware dsv4_fp4_*"
    ),
    "Pion trains no quantized weights. Leave the key out": (
        "qat quantization quantize_embedding fp8* llmcompressor load_in_4bit=false "
        "load_in_8bit=false"
    ),
    "model.rope_theta": "rotary_base",
    "model.experts.balance_weight": "router_aux_loss_coef moe_aux_loss_coef",
    "`model.rope_scaling` is for models from random weights, and `model.from` brings its own": (
        "rope_scaling"
    ),
    # ------------------------------------------------------------ the data
    "STAGE.sources": (
        "datasets dataset dataset_name dataset_mixture dataset_mixer train_dataset train_file "
        "train_files dataset_id_or_path reinforce.prompts"
    ),
    "data.sources": "pretraining_dataset",
    "the kind `hub` of `STAGE.sources` calls it `subset`": (
        "dataset_config dataset_config_name config"
    ),
    "the kind `hub` of `STAGE.sources` calls it `split`": (
        "dataset_split dataset_splits dataset_train_split"
    ),
    "name the files in `path` of `STAGE.sources`": "dataset_dir data_files data_dir dataset_path",
    "the kind `hub` of `STAGE.sources` calls it `max_documents`": "max_samples",
    "`kind` says where the data is, and Pion knows the layout of records by itself": (
        "type ds_type format formatting conversation message_property_mappings message_field_* "
        "field_messages field_chosen field_rejected field_instruction field_input field_output "
        "field_system field_prompt field_thinking template_thinking_key roles roles_to_train "
        "columns dataset_prompt_column dataset_kwargs ranking drop_system_message split_thinking"
    ),
    "`field` of `data.sources` names the column of text": (
        "dataset_text_field text_column text_field"
    ),
    "STAGE.held_out": "val_set_size val_size test_split_size eval_split_size",
    "Pion measures on a share of the data that it keeps out of training: `STAGE.held_out`": (
        "test_datasets eval_dataset dataset_test_split eval_on_each_dataset"
    ),
    "STAGE.seq_len": (
        "sequence_len max_seq_length max_seq_len max_length cutoff_len model_max_length "
        "block_size sequence_length"
    ),
    "a prompt may fill what `reinforce.max_tokens` leaves of a row. Leave the key out": (
        "max_prompt_length max_prompt_len"
    ),
    "Pion packs conversations into rows, and none sees another. Leave the key out": (
        "sample_packing* packing neat_packing packing_strategy eval_sample_packing eval_packing "
        "padding_free pad_to_* group_by_length length_column_name batch_flattening "
        "max_packed_sequence_len multipack_real_batches pretrain_multipack_* use_packed_sequences "
        "batching_strategy train_sampling_strategy total_num_tokens total_supervised_tokens"
    ),
    "only answers are learned, with the token that ends each answer. Leave the key out": (
        "train_on_inputs train_on_prompt assistant_only_loss completion_only_loss mask_history "
        "train_on_eos train_on_eot train_on_last_step_only ignore_pad_token_for_loss"
    ),
    "STAGE.template": "chat_template chat_template_path chat_template_jinja template",
    "STAGE.system": "system_prompt default_system default_system_message",
    "STAGE.template_options": "chat_template_kwargs enable_thinking",
    "Pion prepares the data once, on all cores. Leave the key out": (
        "overwrite_cache dataset_prepared_path tokenized_path preprocess_* skip_prepare_dataset "
        "push_dataset_to_hub dataset_processes dataset_num_proc preprocessing_num_workers "
        "preprocessing_batch_size dataset_keep_in_memory num_dataset_shards_to_save is_preprocess "
        "dataset_shard_* shards shards_idx"
    ),
    "data.clean.exact": "dataset_exact_deduplication",
    "`data.clean` has rules for text, and for conversations Pion has none": (
        "min_sample_len excess_length_strategy"
    ),
    "`weight` of `STAGE.sources` says how much of each is read": (
        "interleave_probs mix_strategy merge_strategy"
    ),
    "rows are shuffled with `seed`, and read while training. Leave the key out": (
        "streaming dataset_streaming streaming_* curriculum_sampling shuffle_* disable_shuffling "
        "buffer_size dataloader_* remove_unused_columns accelerator_config"
    ),
    "write `seed` at the top of the file": "seed data_seed",
    "the kind `hub` of `STAGE.sources` calls it `repo`": "id hf_hub_url ms_hub_url",
    # ------------------------------------------------------------ how long and how fast
    "in Pion, this key is `STAGE.epochs`, and pretrain has only `pretrain.steps`": (
        "num_epochs num_train_epochs"
    ),
    "STAGE.steps": "max_steps",
    "STAGE.lr": "learning_rate",
    "write `STAGE.min_lr`, a rate and no share of the rate": (
        "eta_min cosine_min_lr_ratio min_lr_rate lr_scheduler_kwargs"
    ),
    "STAGE.schedule": "lr_scheduler lr_scheduler_type",
    "STAGE.warmup_steps": "warmup_steps",
    "write `STAGE.warmup_steps`, a number of steps": "warmup_ratio lr_quadratic_warmup",
    "STAGE.weight_decay": "weight_decay",
    "STAGE.optimizer": "optim optimizer optim_config optim_args",
    "`optimizer: muon` of pretrain, with its rate in `muon_lr`": "use_muon",
    "STAGE.beta1": "adam_beta1",
    "STAGE.beta2": "adam_beta2",
    "STAGE.eps": "adam_epsilon adam_eps",
    "STAGE.clip": "max_grad_norm",
    "STAGE.max_spike": "loss_watchdog_threshold loss_watchdog_patience",
    "STAGE.embedding_lr": "embedding_lr_scale",
    "in Pion, this key is `hardware.micro_batch`, which changes no result. `STAGE.global_batch` "
    "says how many rows a step has": "micro_batch_size per_device_train_batch_size",
    "leave the key out. Pion accumulates up to `STAGE.global_batch`, the rows of a step on all "
    "GPUs": "gradient_accumulation_steps auto_find_batch_size",
    "STAGE.global_batch": "batch_size train_batch_size generation_batch_size",
    "leave the key out. Pion finds what fits into the memory": (
        "eval_batch_size eval_accumulation_steps per_device_eval_batch_size"
    ),
    # ------------------------------------------------------------ precision and hardware
    "hardware.dtype": "torch_dtype dtype mixed_precision compute_dtype infer_dtype",
    "leave the key out. A GPU that is fast in bfloat16 computes in it (`hardware.dtype`)": (
        "bf16 bfloat16 pure_bf16 bf16_full_eval downcast_bf16 tf32"
    ),
    "write `hardware.dtype: float32`": "bf16=false float32",
    "Pion computes in bfloat16 or in float32 (`hardware.dtype`), not in float16. Leave the key "
    "out": "fp16 float16 fp16_* amp dtype=fp16 dtype=float16 dtype=half dtype=16",
    "write bfloat16": "dtype=bf16 dtype=bf16* dtype=bfloat16_mixed",
    "write float32": "dtype=fp32 dtype=no dtype=float",
    "hardware.recompute": "gradient_checkpointing recompute_granularity activation_checkpointing",
    "leave the key out. `hardware.recompute` recomputes activations": (
        "gradient_checkpointing_kwargs disable_gradient_checkpointing activation_offloading "
        "use_reentrant_gc recompute_* selective_checkpointing layer_offloading tiled_mlp* "
        "unsloth_* torch_empty_cache_steps gc_*"
    ),
    "hardware.fsdp": "fsdp deepspeed",
    "`hardware.fsdp` divides weights, gradients and moments. Leave the rest out": (
        "fsdp_* deepspeed_* dist_config parallelism_config zero* offload_* ds3_* "
        "reshard_after_forward mixed_precision_policy deepcompile"
    ),
    "Pion divides rows between GPUs, and with `hardware.fsdp` the weights, nothing else": (
        "*_parallel_size *_parallel_degree sequence_parallel heads_k_stride ring_attn_func "
        "cp_mode cp_size dp_replicate_size dp_shard_size context_par* expert_parallel_* use_mca "
        "use_megatron_bridge megatron_* hyper_parallel_* use_hyper_parallel "
        "use_distributed_optimizer overlap_* moe_token_dispatcher_type ddp_* ddp use_ray"
    ),
    "hardware.workers": "num_processes ray_num_workers nproc_per_node n_gpu world_size",
    "the machines are in the file that `pion launch JOB --on` names. Leave the key out": (
        "num_machines machine_rank gpu_ids compute_environment distributed_type "
        "main_training_function main_process_* same_network rdzv_backend tpu_* "
        "enable_cpu_affinity dynamo_config local_rank gpu gpu_count node_count provider secrets "
        "timeout* volumes memory memory_preprocess branch dockerfile_commands use_cpu no_cuda "
        "ray_* gpu_memory_limit resources_per_worker cloud"
    ),
    "hardware.compile": "torch_compile",
    "leave the key out. Pion chooses its kernels by itself": (
        "torch_compile_* flash_attn* flash_attention* attn_implementation sdp_attention "
        "xformers_attention eager_attention s2_attention shift_attn sage_attention flex_att* "
        "fused_attn_kernel flash_optimum liger_* use_liger_kernel use_liger_loss use_unsloth* "
        "cut_cross_entropy chunked_cross_entropy* lora_*_kernel use_kernels use_*_kernels "
        "kernel_config enable_liger_kernel experts_implementation use_scattermoe use_sonicmoe "
        "moe_grouped_gemm *_fusion masked_softmax_* gemma4_hybrid_attn_impl "
        "llama4_linearized_experts use_v1_kernels tokenizer_use_* large_head_* plugins "
        "activation_offloading_kernel sdpa_varlen block_diag_attn"
    ),
    "hardware.deterministic": "full_determinism",
    # ------------------------------------------------------------ LoRA
    "STAGE.lora": "peft_config peft use_peft",
    "`lora: {}` in the section of the stage trains additions": (
        "adapter finetuning_type lora_target_linear lora_task_type create_new_adapter"
    ),
    "leave the key out. Without `lora`, all weights are trained": (
        "finetuning_type=full full_finetune adapter=none"
    ),
    "STAGE.lora.rank": "lora_r lora_rank r",
    "STAGE.lora.alpha": "lora_alpha",
    "STAGE.lora.targets": "lora_target_modules lora_target target_modules",
    "leave the key out. LoRA trains without dropout here: a run that resumes with another "
    "number of workers could not draw the same random numbers": "lora_dropout module_dropout",
    "LoRA trains only its additions to projections. Leave the key out, or train all weights "
    "without `lora`": (
        "lora_modules_to_save modules_to_save additional_target lora_target_parameters "
        "unfrozen_parameters finetuning_type=freeze freeze_* use_llama_pro lora_embedding_kernel"
    ),
    "Pion has LoRA alone, with `rank`, `alpha` and `targets`. Leave the key out": (
        "peft_* lora_* use_dora use_rslora loraplus_* loftq_* pissa_* oft_* qoft_* "
        "finetuning_type=oft relora* jagged_restart_* adapter=llama-adapter adapter=adalora"
    ),
    "`model.from` may name an adapter, which Pion merges first": (
        "lora_model_dir adapter_name_or_path adapter_folder"
    ),
    "publish.adapter": "merge_lora export_adapter",
    # ------------------------------------------------------------ preferences and rewards
    "a job has a section for each stage: pretrain, sft, prefer or reinforce": (
        "stage rl training_type method"
    ),
    "preferences are learned in the section `prefer`, with `loss`": (
        "stage=dpo stage=kto rl=dpo rl=ipo rl=orpo rl=simpo rl=kto rl=kto_pair"
    ),
    "rewards are learned in the section `reinforce`": "stage=ppo rl=grpo rl=gdpo trl rl=ppo",
    "prefer.loss": "loss_type pref_loss dpo_loss_type",
    "in Pion, this key is `prefer.beta`, and `reinforce` has no reference model": (
        "beta pref_beta dpo_beta rl_beta orpo_alpha"
    ),
    "prefer.margin": "simpo_gamma",
    "prefer.label_smoothing": "label_smoothing dpo_label_smoothing label_smoothing_factor",
    "prefer.sft_weight": "rpo_alpha pref_ftx cpo_alpha",
    "prefer.desirable_weight": "desirable_weight kto_desirable_weight kto_chosen_weight",
    "prefer.undesirable_weight": "undesirable_weight kto_undesirable_weight kto_rejected_weight",
    "prefer.reference": "ref_model reference_free",
    "the reference is the model that the stage starts from, computed once. Leave the key out": (
        "ref_* precompute_ref_* sync_ref_model force_use_ref_model"
    ),
    "Pion has no such loss. `prefer.loss` names those that it has": (
        "f_divergence_type f_alpha_* discopop_tau use_weighting ld_alpha loss_weights dpo_* "
        "pref_bco_weight tpo_alpha tpo_l_gamma rl=ebft stage=kto_pair"
    ),
    "reinforce.answers": "num_generations n_samples_per_prompt",
    "reinforce.max_tokens": "max_completion_length response_length",
    "answers are drawn at temperature 1 from all tokens. Leave the key out": (
        "temperature top_p top_k min_p repetition_penalty generation_kwargs generation_*"
    ),
    "reinforce.rewards": "reward_funcs reward_functions",
    "`weight` of `reinforce.rewards` says how much each counts": (
        "reward_weights multi_objective_aggregation"
    ),
    "reinforce.scale": "scale_rewards",
    "each batch of answers makes one update, without a clipped ratio. Leave the key out": (
        "epsilon epsilon_high num_iterations steps_per_generation cliprange* delta "
        "importance_sampling_level mask_truncated_completions ppo_* num_ppo_epochs "
        "num_mini_batches whiten_rewards gamma lam vf_coef off_policy_mask_threshold "
        "top_entropy_quantile sync_ref_* normalize_advantages"
    ),
    "the weights that are trained draw the answers, without a server. Leave the key out": (
        "use_vllm vllm* sglang_* infer_backend use_transformers_* async_prefetch"
    ),
    "Pion learns from functions and from right answers (`reinforce.rewards`), not from a model "
    "of rewards": (
        "reward_model* process_reward_model stage=rm num_labels center_rewards_coefficient "
        "reward_* model_type=auto*sequenceclassification do_causal_lm_eval"
    ),
    "code is judged by a function of yours (`reinforce.rewards`)": "code_* e2b_* pass_rate_*",
    "log.every": "logging_steps",
    "answers are in report.html. Leave the key out": (
        "log_completions* num_completions_to_print log_unique_prompts wandb_log_unique_prompts"
    ),
    # ------------------------------------------------------------ saving, measuring, publishing
    "`store` says where the state is kept, and `publish.to` where the model goes": (
        "output_dir save_dir logging_dir_root"
    ),
    "`pion run` resumes by itself. Leave the key out": (
        "resume_from_checkpoint overwrite_output_dir auto_resume_from_checkpoints "
        "ignore_data_skip restore_callback_states_from_checkpoint do_train"
    ),
    "checkpoint.every_steps": "save_steps",
    "leave the key out. Pion saves by time, or each `checkpoint.every_steps`": (
        "saves_per_epoch save_strategy save_first_step dynamic_checkpoint"
    ),
    "checkpoint.keep.last": "save_total_limit",
    "write `checkpoint.keep.best: true` and `evaluate.checkpoint: best`": (
        "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    "Pion writes safetensors, and the whole state of training. Leave the key out": (
        "save_only_model save_safetensors save_on_each_node"
    ),
    "evaluate.every": "eval_steps",
    "leave the key out. Pion measures each `evaluate.every` steps, and at the end": (
        "evals_per_epoch eval_strategy evaluation_strategy do_eval do_predict eval_delay "
        "eval_on_start per_device_eval_* eval_table_size eval_max_new_tokens "
        "eval_causal_lm_metrics predict_with_generate compute_accuracy plot_loss do_bench_eval"
    ),
    "nothing stops a stage early. `evaluate.checkpoint: best` publishes the best one": (
        "early_stopping_patience early_stopping_steps early_stopping_threshold"
    ),
    "`publish: {to: hf://user/name}` uploads the model": (
        "push_to_hub hub_model_id export_hub_model_id hub_strategy hub_always_push "
        "hub_model_revision hub_revision push_to_hub_revision export_hf_on_finish"
    ),
    "publish.private": "hub_private_repo",
    "publish.to": "export_dir",
    "Pion publishes one file of safetensors, also as GGUF (`publish.gguf`). Leave the key out": (
        "export_*"
    ),
    "tokens are read from the environment (HF_TOKEN). Leave the key out": (
        "hub_token hf_hub_token hf_use_auth_token use_auth_token ms_hub_token om_hub_token"
    ),
    "write `name` at the top of the file": (
        "run_name wandb_name trackio_run_name swanlab_run_name mlflow_run_name "
        "swanlab_experiment_name ray_run_name"
    ),
    "log.wandb": "wandb_project project_name",
    "wandb reads its other settings from the environment, such as WANDB_ENTITY. Leave the key "
    "out": "wandb_* use_wandb",
    "log.tensorboard": "logging_dir use_tensorboard",
    "log.trackio": "trackio_project_name project use_trackio",
    "log.trackio_space": "trackio_space_id",
    "name a project in `log.wandb` or `log.trackio`, or a folder in `log.tensorboard`": "report_to",
    "Pion logs to `log.wandb`, `log.trackio` and `log.tensorboard`, and to nothing else": (
        "swanlab_* use_swanlab mlflow_* use_mlflow hf_mlflow_* comet_* use_comet *otel_metrics* "
        "trackio_bucket_id trackio_static_space_id"
    ),
    "Pion does this by itself. Leave the key out": (
        "logging_strategy logging_first_step log_level* logging_nan_inf_filter log_on_each_node "
        "include_tokens_per_second include_tkps include_num_input_tokens_seen disable_tqdm "
        "average_tokens_across_devices strict debug sample_backend"
    ),
    "the tasks of lm-eval are in `evaluate.lm_eval.tasks`": "lm_eval_* task benchmarks",
    "`pion chat`, `pion generate` and `pion serve` take it as an option": (
        "max_new_tokens do_sample num_beams stop_token use_kv_cache"
    ),
    "Pion trains on text alone. Leave the key out": (
        "image_* video_* audio_* processor_* processor_kwargs freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model freeze_mm_modules media_dir "
        "use_audio_in_video crop_to_patches"
    ),
    "Pion has no such thing. Leave the key out": (
        "neftune_noise_alpha noisy_embedding_alpha callbacks output_dataset_name "
        "mixture_of_depths kl_coef use_dft_loss use_eaft* eaft_* ebft use_asft_loss asft_alpha "
        "diffusion galore_* use_galore qgalore_* apollo_* use_apollo badam_* use_badam lisa_* "
        "use_adam_mini kt_* use_kt torchdistx_path reinit_weights experimental_* pose_* use_pose "
        "distill* kd_* uld_* teacher_* lr_groups dion_* lr_div_factor cosine_constant_lr_ratio "
        "test_value step_separator profiler_* profile_modules enable_torch_profiler gradio_* "
        "vespo_* sapo_* entropy_* iw_opd_* reroll_* use_whitening single_step_decomposition "
        "truncation_mode disable_dropout cache_dir"
    ),
    # ------------------------------------------------------------ values
    "write adamw": (
        "optimizer=adamw_torch* optimizer=adamw_hf optimizer=adamw_apex_fused "
        "optimizer=paged_adamw optimizer=paged_adamw_32bit optimizer=adam optimizer=adamw_bnb "
        "optimizer=adamw_anyprecision"
    ),
    "write adamw8bit": (
        "optimizer=adamw_8bit optimizer=adamw_bnb_8bit optimizer=paged_adamw_8bit "
        "optimizer=adamw_torch_8bit optimizer=adamw_torch_4bit optimizer=ao_adamw_*"
    ),
    "leave the optimizer out. `pion help optimizers` says how to add one": (
        "optimizer=adafactor optimizer=lion* optimizer=paged_lion* optimizer=sgd "
        "optimizer=rmsprop* optimizer=adagrad optimizer=galore* optimizer=lomo optimizer=adalomo "
        "optimizer=came* optimizer=optimi_adamw optimizer=ademamix* optimizer=grokadamw "
        "optimizer=schedule_free* optimizer=apollo* optimizer=flash_* optimizer=dion "
        "optimizer=sinkgd optimizer=q_galore*"
    ),
    "write wsd, with `decay_shape: linear` and `decay_fraction: 1`": (
        "schedule=linear schedule=polynomial"
    ),
    "write cosine, and the last rate in `min_lr`": (
        "schedule=cosine_with_min_lr schedule=cosine_warmup_with_min_lr"
    ),
    "write constant, with `warmup_steps`": "schedule=constant_with_warmup",
    "write wsd": "schedule=warmup_stable_decay",
    "Pion has no such schedule. cosine is the nearest": (
        "schedule=cosine_with_restarts schedule=one_cycle schedule=rex schedule=inverse_sqrt "
        "schedule=reduce_lr_on_plateau"
    ),
    "write dpo": "loss=sigmoid",
    "write dpo-norm": "loss=sigmoid_norm",
    "write apo-zero, which learns from single answers, too": (
        "loss=kto_pair loss=apo_zero loss=apo_zero_unpaired"
    ),
    "write apo-down": "loss=apo_down",
    "rewards are learned in the section `reinforce`, which has one loss": (
        "loss=grpo loss=dr_grpo loss=dapo loss=bnpo loss=cispo loss=gspo"
    ),
    "write std": "scale=true scale=group",
    "write none": "scale=false",
    "write auto, which takes the template of the model": (
        "template=qwen* template=llama* template=gemma* template=mistral* template=ministral* "
        "template=deepseek* template=phi* template=glm* template=*chatml* template=alpaca "
        "template=vicuna template=default template=*vl template=tokenizer_default* "
        "template=*_nothink template=intern* template=*jinja* template={%*"
    ),
}
PATTERNS = {pattern: answer for answer, patterns in NAMES.items() for pattern in patterns.split()}


def in_pion(path: str, value: object, values: Any) -> str | None:
    """Return what to do about a key of others, such as "in Pion, this key is `sft.lr`".

    `values` is the whole job. None: no other program has the key.
    """
    key = path.rpartition(".")[2][:100]
    answer = PATTERNS.get(path) or _answer(key)
    if answer is not None and " " not in answer:
        instead = instead_of_value(answer.rpartition(".")[2], value)
        answer = f"in Pion, this key is `{answer}`" + (f"; {instead}" if instead else "")
    else:
        answer = instead_of_value(key, value) or answer
    return answer and re.sub(
        r"`STAGE\.([a-z_0-9.]+)`", lambda name: _in_stages(name[1], path, values), answer
    )


def instead_of_value(key: str, value: object) -> str | None:
    """Return what to write in place of a value that others give a key; None for other values."""
    simple = isinstance(value, str | int) and len(str(value)) <= 100
    return _answer(f"{key}={str(value).lower()}") if simple else None


def _answer(asked: str) -> str | None:
    fits = (
        answer
        for pattern, answer in PATTERNS.items()
        if ("=" in pattern) == ("=" in asked) and fnmatchcase(asked, pattern)
    )
    return PATTERNS.get(asked) or next(fits, None)


def _in_stages(name: str, path: str, values: Any) -> str:
    """Return a key as the stage of `path` has it, or the stages of the job, or all of them."""
    homes = {stage: f"{stage}.{name}" for stage in TRAINING}
    if find_field(homes["pretrain"], values) is None:
        homes["pretrain"] = f"data.{name}"  # data has what is read in pretraining
    homes = {s: home for s, home in homes.items() if find_field(home, values) is not None}
    here = [home for stage, home in homes.items() if path.startswith(f"{stage}.")]
    job = [home for stage, home in homes.items() if stage in values]
    return " or ".join(f"`{home}`" for home in here or job or homes.values())
